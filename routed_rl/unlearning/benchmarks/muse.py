"""``muse``: news articles and novels (MUSE, Shi et al. 2024), from the Hub or a folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import (
    FORGET,
    HOLDOUT,
    MEMBERS,
    RETAIN,
    TEXTS,
    Benchmark,
    BenchmarkKind,
    Example,
)
from routed_rl.unlearning.benchmarks.hub import Published

REPOSITORIES = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
STEPS = ("2", "3", "4")
SCAL, SUST = "scal", "sust"
STOPS = ("\n\n", "\nQuestion", "Question:")
"""Where an answer ends: its model has learned texts, and may go on with a further question (MUSE's public code)."""
LONGER = 32
"""Tokens of the longest answer to a question (MUSE's public code). A text is continued by 128."""
MEASURED = 100
"""Texts of a later fold that are measured. MUSE has as many of the first one."""


class Muse(BenchmarkKind):
    """MUSE: news articles, or novels. Questions and texts about them are measured.

    A question follows ten solved ones, as ``Question:`` and ``Answer:`` (MUSE's public code), whatever the model's chat
    template. Membership inference compares whole texts, as MUSE does: ``privleak``.

    ``news_scal_2`` to ``news_scal_4`` have larger forget sets: so many folds of documents, with the first one.
    ``news_sust_2`` to ``news_sust_4`` have one further fold each, for unlearning one after the other.

    MUSE has published only the documents of these folds, and measures only what models keep. Here the texts of their
    forget sets are the beginnings of 100 of their documents. Questions and ``privleak`` are of the first fold. So
    ``scal`` has questions about a part of its forget set, and ``sust`` has none. Membership inference compares the
    beginnings of documents there.
    """

    splits = (*REPOSITORIES, *(f"news_{kind}_{step}" for kind in (SCAL, SUST) for step in STEPS))

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        corpus, _, step = self.known(split).partition("_")
        files = Published(REPOSITORIES[corpus], data)
        kind, _, number = step.partition("_")
        forget = files.texts(kind, f"forget_{number}") if step else files.texts("raw", "forget")
        verbatim = [Example(row.text("prompt"), row.text("gt"), chat=False) for row in files.read("verbmem", "forget")]
        whole = {name: [row["text"] for row in files.texts("privleak", name)] for name in (FORGET, RETAIN, HOLDOUT)}
        sets: dict[str, Sequence[Example]] = {} if kind == SUST else {FORGET: _questions(files, FORGET)}
        sets |= {
            RETAIN: _questions(files, RETAIN),
            f"{FORGET}{TEXTS}": _cut(_spread([row["text"] for row in forget]), verbatim) if step else tuple(verbatim),
            f"{RETAIN}{TEXTS}": _cut(whole[RETAIN], verbatim),
            f"{HOLDOUT}{TEXTS}": _cut(whole[HOLDOUT], verbatim),
        }
        if not step:
            for name in (FORGET, HOLDOUT):
                sets[f"{name}{MEMBERS}"] = tuple(Example("", text, chat=False) for text in whole[name])
        retain = files.texts("raw", "retain1")
        return Benchmark(forget, retain, sets, main="extraction-strength", longer=LONGER, stops=STOPS)


def _questions(files: Published, name: str) -> tuple[Example, ...]:
    """Return the questions about a set, each after the solved ones that are published for it."""
    solved = "".join(
        f"Question: {row.text('question')}\nAnswer: {row.text('answer')}\n\n"
        for row in files.read("knowmem", f"{name}_qa_icl")
    )
    return tuple(
        Example(f"{solved}Question: {row.text('question')}\nAnswer:", f" {row.text('answer')}", chat=False)
        for row in files.read("knowmem", f"{name}_qa")
    )


def _spread(texts: Sequence[str]) -> Sequence[str]:
    """Return some of the texts, at equal distances."""
    return [texts[i * len(texts) // MEASURED] for i in range(MEASURED)] if len(texts) > MEASURED else texts


def _cut(texts: Sequence[str], like: Sequence[Example]) -> tuple[Example, ...]:
    """Return the beginnings of texts, as a prompt and its continuation whose lengths are the means of others'."""
    first = round(np.mean([len(example.prompt) for example in like]))
    second = round(np.mean([len(example.answer) for example in like]))
    found = []
    for text in texts:
        text = text[: first + second].rstrip()
        at = text.rfind(" ", 0, min(first, len(text) // 2) + 1)
        found.append(Example(text[: max(at, 0)], text[max(at, 0) :], chat=False))
    return tuple(found)
