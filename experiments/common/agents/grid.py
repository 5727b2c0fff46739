"""Train many agents in parallel."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from routed_rl.errors import UserError, user_input
from routed_rl.experiments.common.agents.options import PRESETS, Train
from routed_rl.runs import config_hash, run_commands
from routed_rl.runs.grid import PYTHON, Backend, Kind, options, run_all


def train_all(
    runs: Sequence[Train], workers: int, backend: Backend = run_commands, parallel_seeds: int = 1
) -> dict[Path, str]:
    """Train every unfinished run. See :func:`~routed_rl.runs.grid.run_all`.

    Args:
        parallel_seeds: number of runs that a process trains as one batch. They differ only in seed, oversight level and
            label noise.
    """
    return run_all(runs, kind(parallel_seeds), workers, backend)


def kind(parallel_seeds: int = 1) -> Kind:
    """What all training runs have in common, for :func:`~routed_rl.runs.grid.run_all`. Arguments: :func:`train_all`."""
    from routed_rl.experiments.common.agents.recipe import budget

    return Kind(
        config=Train.config,
        command=_command,
        total=lambda run: budget(run.config()),
        counter="env_steps",
        batches=partial(_batches, size=parallel_seeds),
    )


def _batches(runs: Sequence[Train], size: int) -> list[list[Train]]:
    """Groups of at most ``size`` runs that differ only in seed, oversight level and label noise. One process trains one
    group."""
    from routed_rl.experiments.common.agents.recipe import budget

    free = {"oversight": 0.1, "miss_rate": 0.0, "flip_rate": 0.0, "hard_first": False}
    alike: dict[tuple[str, int], list[Train]] = {}
    for run in runs:
        alike.setdefault((config_hash({**run.config(), **free}), budget(run.config())), []).append(run)
    return [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]


def check_options(runs: Sequence[Train], parallel_seeds: int = 1) -> None:
    """Check the options of all runs before the first run starts. Raises UserError for an impossible option."""
    from routed_rl.experiments.common.agents.recipe import ONE_BY_ONE, make_model

    for run in runs:
        if parallel_seeds > 1 and run.world in ONE_BY_ONE:
            raise UserError(
                f"--parallel-seeds needs a batched world, not --world {run.world}; choose another world or leave it out"
            )
        if parallel_seeds > 1 and run.learner.unfinished == "hold":
            raise UserError("--parallel-seeds needs batches of one size; leave out --learner.unfinished hold")
    with user_input():
        for run in {config_hash(run.config()): run for run in runs}.values():
            make_model(run.config(), run.seed)


def arguments(run: Train) -> list[str]:
    """The command line of a run: the options that differ from its preset."""
    return ["train", "--preset", run.preset, *options(run, PRESETS[run.preset])]


def _command(batch: Sequence[Train]) -> list[str]:
    if len(batch) == 1:
        return [*PYTHON, "routed_rl.experiments.cli", *arguments(batch[0])]
    return [*PYTHON, "routed_rl.experiments.parallel", *(shlex.join(arguments(run)) for run in batch)]
