"""Train many agents of the command line in parallel."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from routed_rl.experiments.common.agents.options import PRESETS, Train
from routed_rl.rl.oversight_study.grid import kind
from routed_rl.runs import run_commands
from routed_rl.runs.grid import Backend, options, run_all
from routed_rl.runs.pool import PYTHON


def train_all(
    runs: Sequence[Train], workers: int, backend: Backend = run_commands, parallel_seeds: int = 1
) -> dict[Path, str]:
    """Train every unfinished run. See :func:`~routed_rl.runs.grid.run_all`.

    Args:
        parallel_seeds: as for :func:`~routed_rl.rl.oversight_study.grid.kind`.
    """
    return run_all(runs, kind(train_command, parallel_seeds), workers, backend)


def arguments(run: Train) -> list[str]:
    """The command line of a run: the options that differ from its preset."""
    return ["train", "--preset", run.preset, *options(run, PRESETS[run.preset])]


def train_command(batch: Sequence[Train]) -> list[str]:
    """The command line of a process that trains some runs."""
    return [*PYTHON, "routed_rl.experiments.parallel", *(shlex.join(arguments(run)) for run in batch)]
