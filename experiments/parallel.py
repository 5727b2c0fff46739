"""Train runs in one process, as one batch: ``python -m routed_rl.experiments.parallel 'train …' 'train …'``."""

import shlex
import sys
from collections.abc import Sequence

from routed_rl.errors import guarded
from routed_rl.experiments.cli import parse
from routed_rl.experiments.gridworld.train import train_and_show
from routed_rl.wording import speak_of


def main(argv: Sequence[str] | None = None) -> None:
    """Train the runs of these command lines. A user's mistake ends as in :func:`~routed_rl.errors.guarded`."""
    guarded(lambda: _train(sys.argv[1:] if argv is None else argv))


def _train(lines: Sequence[str]) -> None:
    commands = [parse(shlex.split(line)) for line in lines]
    speak_of(type(commands[0]))
    train_and_show(commands)


if __name__ == "__main__":
    main()
