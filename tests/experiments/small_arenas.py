"""Small arenas, done in this process, and one that is killed. The latter forks; no GPU may be visible."""

from functools import partial
from pathlib import Path

import pytest

from routed_rl.experiments import cli
from routed_rl.lm import models
from routed_rl.lm.training import Training
from routed_rl.runs import process
from routed_rl.unlearning.benchmarks import BENCHMARKS, Benchmark, BenchmarkKind, Recipe
from tests.experiments.in_process import draw_nothing, run_in_process
from tests.lm.killed_training import forked, kill_until_done
from tests.unlearning.arena.small_arena import small_benchmark

KILLS = 5
"""How often it is killed at the least."""
SCORES = ("knowledge", "retained-knowledge", "extraction-strength", "forget-quality")
OPTIONS = [
    *("--benchmark", "tofu-small", "--methods", "npo", "graddiff", "--settings", "npo.steps=2", "graddiff.steps=2"),
    *("--attacks", "fine-tuning", "quantisation", "--batch-size", "2", "--budget", "4", "--student.steps", "3"),
    *("--student.least", "2"),
    *("--scores", *SCORES),
]


class SmallKind(BenchmarkKind):
    """Questions about four authors, for a model that learns nothing in its few steps."""

    recipe = Recipe("tiny", 400, Training(steps=6, warmup=2), batch_size=4)

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        return small_benchmark()


def make_small(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let arenas have a small benchmark, tiny models and no process of their own; gives the command lines."""
    patch.setitem(models.PRESETS, "tiny", models._gpt_neo(width=16, layers=1, heads=2, length=96))
    patch.setitem(BENCHMARKS, "tofu-small", SmallKind)
    return run_in_process(patch)


def study(out: Path, *options: str) -> None:
    cli.main(["arena", *OPTIONS, *options, "--out", str(out)])


def main(folder: Path) -> None:
    """Leave FOLDER/unbroken, and FOLDER/killed, which was killed (SIGKILL) again and again until it was done;
    FOLDER/kills says how often."""
    process.one_thread()
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        draw_nothing(patch)  # it takes more calls than all else
        few = ("--methods", "npo", "--then", "none", "--attacks", "quantisation", "--scores", "forget-quality")
        study(folder / "first", *few)  # torch and transformers import much when it is first needed
        calls = forked(partial(study, folder / "unbroken", *few), count=True)
        kills = kill_until_done(partial(study, folder / "killed", *few), calls, (0.05, 0.15, 0.25, 0.3))
        (folder / "kills").write_text(str(kills))
