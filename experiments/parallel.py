"""Train several runs in one process, as one batch: ``python -m routed_rl.experiments.parallel 'train …' 'train …'``."""

import shlex
import sys

from routed_rl.errors import guarded
from routed_rl.experiments.cli import parse
from routed_rl.experiments.gridworld.train import train_and_show

if __name__ == "__main__":
    guarded(lambda: train_and_show([parse(shlex.split(line)) for line in sys.argv[1:]]))
