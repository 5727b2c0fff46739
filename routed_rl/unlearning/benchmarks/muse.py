"""``muse``: news articles and novels (MUSE, Shi et al. 2024), from the Hub or a folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import FORGET, HOLDOUT, RETAIN, TEXTS, Benchmark, BenchmarkKind, Example
from routed_rl.unlearning.benchmarks.fields import Fields
from routed_rl.unlearning.benchmarks.hub import Published

REPOSITORIES = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
STEPS = ("2", "3", "4")


class Muse(BenchmarkKind):
    """MUSE: news articles, or novels. Questions and texts about them are measured.

    ``news_scal_2`` to ``news_scal_4`` have larger forget sets. ``news_sust_2`` to ``news_sust_4`` have other ones, for
    unlearning one after the other.

    Texts of the retain set and the holdout are cut to the mean length of the forget texts, so that membership scores
    compare like with like. MUSE itself compares longer texts.
    """

    splits = (*REPOSITORIES, *(f"news_{kind}_{step}" for kind in ("scal", "sust") for step in STEPS))

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        corpus, _, step = self.known(split).partition("_")
        files = Published(REPOSITORIES[corpus], data)
        kind, _, number = step.partition("_")
        forget = files.texts(kind, f"forget_{number}") if step else files.texts("raw", "forget")
        texts = tuple(
            Example(row.text("prompt"), row.text("gt"), chat=False) for row in files.read("verbmem", "forget")
        )
        return Benchmark(
            forget,
            files.texts("raw", "retain1"),
            {
                FORGET: _questions(files.read("knowmem", "forget_qa")),
                RETAIN: _questions(files.read("knowmem", "retain_qa")),
                f"{FORGET}{TEXTS}": texts,
                f"{RETAIN}{TEXTS}": _cut(files.read("privleak", "retain"), texts),
                f"{HOLDOUT}{TEXTS}": _cut(files.read("privleak", "holdout"), texts),
            },
        )


def _questions(rows: Sequence[Fields]) -> tuple[Example, ...]:
    return tuple(Example(row.text("question"), row.text("answer")) for row in rows)


def _cut(rows: Sequence[Fields], like: Sequence[Example]) -> tuple[Example, ...]:
    """Return the beginnings of texts, as a prompt and its continuation whose lengths are the means of others'."""
    first = round(np.mean([len(example.prompt) for example in like]))
    second = round(np.mean([len(example.answer) for example in like]))
    found = []
    for row in rows:
        text = row.text("text")[: first + second].rstrip()
        at = text.rfind(" ", 0, min(first, len(text) // 2) + 1)
        found.append(Example(text[: max(at, 0)], text[max(at, 0) :], chat=False))
    return tuple(found)
