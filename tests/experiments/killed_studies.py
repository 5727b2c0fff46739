"""A small study of ``routed-rl era`` that is killed. It forks; no GPU may be visible."""

from functools import partial
from pathlib import Path

import pytest

from routed_rl.experiments import cli
from routed_rl.lm import models
from routed_rl.lm.era_study import division, pipeline
from routed_rl.runs import process
from tests.experiments.in_process import draw_nothing, run_in_process
from tests.lm.killed_training import forked, kill_until_done

KILLS = 4
"""How often it is killed at the least."""
SMALL = (
    "--documents 300 --steps 6 --warmup 2 --batch-size 4 --layers 0 1 --units 4 --test-documents 10 --rmu.depth 2 "
    "--rmu.steps 3 --rmu.batch-size 4 --attack.documents 2 --attack.repeats 1 --attack.steps 3 --repair.documents 8 "
    "--repair.selection 8 --repair.steps 3 --repair.chosen-steps 3"
)
OPTIONS = SMALL.split()
METHODS = ("base", "rmu", "era")


def make_small(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let studies have models that are tiny indeed, with dropout, and do every run in this process; gives the command
    lines of what is run."""
    tiny = partial(models._gpt_neo(width=16, layers=2, heads=2, length=64), resid_dropout=0.1)
    patch.setitem(models.PRESETS, "tiny", tiny)
    patch.setattr(division, "SAMPLES", 1)
    patch.setattr(pipeline, "SAMPLE_TOKENS", 3)
    return run_in_process(patch)


def study(out: Path, corpora: Path) -> None:
    cli.main(["era", *OPTIONS, "--methods", *METHODS, "--labelled", "0.5", "--seeds", "1", "--corpora", str(corpora),
              "--out", str(out)])  # fmt: skip


def main(folder: Path) -> None:
    """Leave FOLDER/unbroken, and FOLDER/killed, which was killed (SIGKILL) again and again, between runs and within
    them, until it was done; FOLDER/kills says how often."""
    process.one_thread()
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        draw_nothing(patch)  # it takes more calls than all else
        kill(folder)


def kill(folder: Path) -> None:
    work = partial(study, corpora=folder / "corpora")
    study(folder / "first", folder / "corpora")  # torch and transformers import much when it is first needed
    calls = forked(partial(work, folder / "unbroken"), count=True)
    shares = (0.1, 0.4, 0.55)  # a quarter is gone before the first step
    kills = kill_until_done(partial(work, folder / "killed"), calls, shares)
    (folder / "kills").write_text(str(kills))
