"""A small pipeline of ``routed-rl undo`` that is killed. It forks; no GPU may be visible."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro

from routed_rl.experiments import cli
from routed_rl.lm import models
from routed_rl.runs import process
from routed_rl.unlearning import MaxEnt
from routed_rl.unlearning.undo_study import worker
from routed_rl.unlearning.undo_study.worker import Stages
from tests.experiments.in_process import draw_nothing, run_in_process
from tests.lm.killed_training import forked, kill_until_done

KILLS = 10
"""How often it is killed at the least."""
SMALL = (
    "--task languages --documents 200 --pretrain.steps 6 --pretrain.warmup 2 --distil.steps 6 --distil.warmup 2 "
    "--distil.every 2 --batch-size 4 --suppress-rows 2 --test-documents 4 --relearn.steps 3 --relearn.measured 1 3 "
    "--relearn.learning-rates 1e-3 1e-4 --allow-weak-teacher"
)
OPTIONS = SMALL.split()


def make_small(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let the models be tiny indeed, and every stage be done in this process; gives their command lines."""
    patch.setitem(models.PRESETS, "gemma2-tiny", models._gemma2(width=16, layers=1, heads=4, head_width=4))
    patch.setattr(worker, "tyro", SimpleNamespace(cli=_parse))
    return run_in_process(patch)


def _parse(of: type[Stages], args: Sequence[str]) -> Stages:
    """As ``tyro.cli``, which takes longer than a stage. The stages of a study have the same options."""
    names, options = args.index("--only") + 1, args.index("--together")
    return replace(_options(of, tuple(args[options:])), only=tuple(args[names:options]))


@cache
def _options(of: type[Stages], args: tuple[str, ...]) -> Stages:
    return tyro.cli(of, args=args)


def study(out: Path, corpora: Path) -> None:
    cli.main(["undo", *OPTIONS, "--alphas", "0.5", "--corpora", str(corpora), "--out", str(out)])


def main(folder: Path) -> None:
    """Leave FOLDER/unbroken, and FOLDER/killed, which was killed (SIGKILL) again and again, in stages and between
    stages, until it was done; FOLDER/kills says how often."""
    process.one_thread()
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(MaxEnt, "recipe", replace(MaxEnt.recipe, steps=6))
        draw_nothing(patch)  # it takes more calls than all else
        kill(folder)


def kill(folder: Path) -> None:
    work = partial(study, corpora=folder / "corpora")
    study(folder / "first", folder / "corpora")  # torch and transformers import much when it is first needed
    calls = forked(partial(work, folder / "unbroken"), count=True)
    shares = (0.05, 0.15, 0.25, 0.3)  # a sixth is gone before the first stage
    kills = kill_until_done(partial(work, folder / "killed"), calls, shares)
    (folder / "kills").write_text(str(kills))
