"""The runs of a study: their checks, their processes, and which of them share a process."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from routed_rl.errors import UserError, user_input
from routed_rl.options.oversight import EARLY_STOPPED, Run
from routed_rl.rl.oversight_study.methods import is_own, own_method
from routed_rl.rl.oversight_study.recipe import TaskOf, budget, make_model, own_task
from routed_rl.runs import RunError, RunRecord, config_hash, read_json, read_run
from routed_rl.runs.grid import Kind, is_finished, options
from routed_rl.runs.pool import PYTHON
from routed_rl.runs.record import differences
from routed_rl.runs.rundir import RESULT
from routed_rl.wording import written

WORKER = "routed_rl.rl.oversight_study.worker"


def run_config(run: Run) -> dict[str, Any]:
    """Everything that a run depends on, except its seed, as JSON.

    Raises:
        ValueError: if its code cannot be found.
        RunError: if it cannot extend the run that it names.
    """
    config = run.config()
    if is_own(run.method):
        config["switches"] = asdict(own_method(run.method))
    if run.env is not None:
        task = own_task(config)
        config |= {"outcomes": task.written_outcomes(), "code": task.code()}
    return config if run.extends is None else {**config, "extends": _extended(run, run.extends, config)}


def _extended(run: Run, path: Path, config: dict[str, Any]) -> str:
    """Return what identifies the run at ``path``; raise a RunError unless ``run`` is the same run, but longer."""
    there = read_run(path)
    if run.out is not None and os.path.realpath(run.out) == os.path.realpath(path):
        raise RunError(f"--extends and --out must be different directories, got {str(path)!r} for both")
    alike = {name: value for name, value in there.config.items() if name != "extends"}
    alike["total_steps"] = config["total_steps"]
    if differing := differences(RunRecord.of(alike, there.seed), RunRecord.of(config, run.seed)):
        raise RunError(f"--extends needs the options of {str(path)!r}: {'; '.join(differing[:3])}")
    if run.method == EARLY_STOPPED:
        raise RunError(f"a run of {EARLY_STOPPED} keeps its best agent, not its last: it cannot be extended")
    if not is_finished(path):
        raise RunError(f"{str(path)!r} is not finished: its own command continues it; --extends needs a finished run")
    if budget(config) <= (steps := read_json(path / RESULT)["env_steps"]):
        raise RunError(f"--total-steps must be above {steps}, the steps of {str(path)!r}, got {config['total_steps']}")
    return f"{there.config_hash}-s{there.seed}"


def kind(command: Callable[[Sequence[Any]], list[str]], parallel_seeds: int = 1) -> Kind:
    """What all training runs have in common, for :func:`~routed_rl.runs.grid.run_all`.

    Args:
        command: the command line of a process that trains some runs.
        parallel_seeds: number of runs that a process trains as one batch. They differ only in seed, oversight level and
            label noise.
    """
    return Kind(
        config=run_config,
        command=command,
        total=lambda run: budget(run.config()),
        counter="env_steps",
        batches=partial(_batches, size=parallel_seeds),
    )


def worker_command(batch: Sequence[Run]) -> list[str]:
    """The command line of a process that trains some runs in an environment of the user's own."""
    return [*PYTHON, WORKER, *(shlex.join(options(run, Run())) for run in batch)]


def _batches(runs: Sequence[Run], size: int) -> list[list[Run]]:
    """Groups of at most ``size`` runs that differ only in seed, oversight level and label noise. One process trains one
    group. They are in the order of their first runs, so that every method is seen early."""
    free = {"oversight": 0.1, "miss_rate": 0.0, "flip_rate": 0.0, "hard_first": False}
    alike: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        alike.setdefault((config_hash({**run.config(), **free}), budget(run.config())), []).append(run)
    groups = [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]
    return sorted(groups, key=lambda group: runs.index(group[0]))


def check_options(runs: Sequence[Run], task_of: TaskOf, parallel_seeds: int = 1) -> None:
    """Check the options of all runs before the first run starts. Raises UserError for an impossible option."""
    with user_input():
        for run in {config_hash(run.config()): run for run in runs}.values():
            task = task_of(run.config())
            if parallel_seeds > 1 and run.extends is not None:
                raise UserError("--extends continues one run; leave out --parallel-seeds")
            if parallel_seeds > 1 and not task.shared:
                raise UserError(
                    f"--parallel-seeds needs a batched world, not {task.name}; choose another world or leave it out"
                )
            if parallel_seeds > 1 and run.learner.unfinished == "hold":
                unfinished = written("--learner.unfinished", "hold")
                raise UserError(f"--parallel-seeds needs batches of one size; leave out {unfinished}")
            make_model(run.config(), run.seed, task)
