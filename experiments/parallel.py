"""``python -m experiments.parallel 'train …' 'train …'``: runs that one process of a study trains as one batch."""

import shlex
import sys

from experiments.cli import guarded, parse
from experiments.training import train_runs

if __name__ == "__main__":
    guarded(lambda: train_runs([parse(shlex.split(line)) for line in sys.argv[1:]]))
