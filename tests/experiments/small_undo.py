"""Small studies of ``routed-rl undo`` in this process, for the tests of its options and of its results."""

import contextlib

import pandas as pd
import pytest

from routed_rl.experiments import cli
from tests.experiments.killed_undo import OPTIONS, make_small
from tests.experiments.mistakes import complaints


@contextlib.contextmanager
def small_models(tmp_path_factory):
    """Let models be small and made in this process; gives the folder of corpora, and what has been run."""
    with pytest.MonkeyPatch.context() as patch:
        yield tmp_path_factory.mktemp("corpora"), make_small(patch)


def run(small, *options):
    cli.main(["undo", *map(str, options), "--corpora", str(small[0])])


def refused(capsys, small, *options):
    """The last line that a mistake ends with."""
    return complaints(capsys, lambda: run(small, *options))[-1]


STUDY = (*OPTIONS, "--alphas", "0.5")
"""A study of four models."""


def table(out):
    return pd.read_csv(out / "results.csv").set_index("name")
