"""Runs of a study in a process of their own: ``python -m routed_rl.rl.oversight_study.worker '…' '…'``.

Each argument is the command line of one run, the options of :class:`~routed_rl.options.oversight.Run`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

import tyro

from routed_rl.errors import guarded
from routed_rl.options.oversight import Run
from routed_rl.rl.oversight_study.recipe import own_task
from routed_rl.rl.oversight_study.training import train_runs
from routed_rl.wording import speak_of


def main(argv: Sequence[str] | None = None) -> None:
    """Train the runs of these command lines. A user's mistake ends as in :func:`~routed_rl.errors.guarded`."""
    guarded(lambda: _train(sys.argv[1:] if argv is None else argv))


def _train(lines: Sequence[str]) -> None:
    speak_of(Run)
    train_runs([tyro.cli(Run, args=shlex.split(line)) for line in lines], own_task)


if __name__ == "__main__":
    main()
