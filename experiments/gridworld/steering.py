"""Load an agent, and steer it as the command line asks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from routed_rl.experiments.common.agents.options import PRESETS
from routed_rl.experiments.common.agents.worlds import load_run, task_of
from routed_rl.experiments.gridworld.options import Steered
from routed_rl.rl import RoutedAlgorithm, RoutedPPO, RoutedREINFORCE
from routed_rl.rl.oversight_study.tasks import Task
from routed_rl.runs.checkpoint import MANIFEST
from routed_rl.runs.packed import read_anywhere


def open_agent(command: Steered) -> tuple[RoutedAlgorithm, Task, dict[str, Any]]:
    """Return a model, where it is tested, and the configuration of the run: of a run, or of a folder of ``model.save``.

    Raises:
        RunError, CheckpointError: as :func:`~routed_rl.rl.oversight_study.recipe.load_run`.
        ValueError: if the model cannot act in the world or environment.
    """
    directory = command.directory
    if not (directory / MANIFEST).is_file() and not is_zipfile(directory):
        if command.world is not None or command.env is not None:
            option = f"--world {command.world}" if command.env is None else f"--env {command.env}"
            raise ValueError(f"{option} is for a folder that model.save() has made, got the run {str(directory)!r}")
        model, config = load_run(directory)
        return model, task_of(config), config
    model = _load(directory)
    outcomes = tuple(f"{name}={value}" for name, value in model.overseer.values.items())
    config = replace(
        PRESETS["quick"],
        world=command.world or "gridworld",
        env=command.env,
        outcomes=outcomes if command.env else (),
    ).config()
    task = task_of(config)
    env = task.test_env(1)
    for space in ("observation_space", "action_space"):
        if getattr(env, space) != getattr(model, space):
            raise ValueError(
                f"the model {str(directory)!r} has the {space} {getattr(model, space)}, but {task.name} has "
                f"{getattr(env, space)}: name its world with --world, or its environment with --env"
            )
    if set(task.values) != set(model.overseer.outcomes):
        raise ValueError(
            f"the model {str(directory)!r} knows the outcomes {', '.join(model.overseer.outcomes)}, "
            f"but {task.name} has {', '.join(task.values)}"
        )
    return model, task, config


def _load(directory: Path) -> RoutedAlgorithm:
    kind = RoutedREINFORCE if read_anywhere(directory).meta.get("algorithm") == "RoutedREINFORCE" else RoutedPPO
    return kind.load(directory, device="cpu")


def steer(model: RoutedAlgorithm, command: Steered) -> str:
    """Steer a loaded model as the command line asks. Return the name of the steered policy.

    Raises:
        ValueError: if a module is unknown, or if two options exclude each other.
    """
    choice, ablate, avoid = command.steer, command.ablate, command.avoid
    if choice is not None and ablate is not None:
        raise ValueError(f"--steer {choice} and --ablate {ablate} exclude each other; give only one of them")
    if avoid is not None and choice is None:
        raise ValueError(f"--avoid {avoid} needs --steer; name the module to act with, as in --steer diamond")
    if choice is not None:
        model.steer(choice, avoid={} if avoid is None else {avoid: command.strength})
        return f"steer:{choice}" if avoid is None else f"steer:{choice}, avoid:{avoid}"
    if ablate is not None:
        model.ablate(ablate)
        return f"ablate:{ablate}"
    if model.policy.steering:
        return f"as saved: {json.dumps(model.policy.steering)}"
    return "unsteered"
