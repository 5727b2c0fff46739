"""``tofu``: questions about made-up authors (TOFU, Maini et al. 2024), from the Hub or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from routed_rl.lm.chat import ChatFormat
from routed_rl.options.text import SYSTEM_PROMPT
from routed_rl.unlearning.benchmarks.benchmark import FORGET, HOLDOUT, RETAIN, Benchmark, BenchmarkKind, Example
from routed_rl.unlearning.benchmarks.fields import Fields
from routed_rl.unlearning.benchmarks.hub import Published

REPOSITORY = "locuslab/TOFU"

OF_AUTHOR = 20
"""Questions about each author, which follow each other (TOFU, Maini et al. 2024)."""


class Tofu(BenchmarkKind):
    """TOFU: 4,000 questions about 200 made-up authors. The forget set is all questions about 1, 5 or 10 % of them.

    Real authors and world facts have no paraphrase.

    Questions are written as by open-unlearning (Dorna et al. 2025), whose models know TOFU: with its system prompt in
    the model's chat template, or as ``Question:`` and ``Answer:`` for models without one.
    """

    splits = ("forget10", "forget05", "forget01")
    chat: ClassVar[ChatFormat] = ChatFormat(SYSTEM_PROMPT, "Question: {question}\nAnswer: ")

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        forget = self.known(split)
        percent = int(forget.removeprefix("forget"))
        files = Published(REPOSITORY, data)
        measured = {
            FORGET: f"{forget}_perturbed",
            RETAIN: "retain_perturbed",
            HOLDOUT: f"holdout{percent:02}",
            "real_authors": "real_authors_perturbed",
            "world_facts": "world_facts_perturbed",
        }
        return Benchmark(
            [_document(row) for row in files.read(forget)],
            [_document(row) for row in files.read(f"retain{100 - percent}")],
            {
                name: tuple(
                    _example(row, f"{name} {i // OF_AUTHOR}") for i, row in enumerate(files.read(configuration))
                )
                for name, configuration in measured.items()
            },
            main="extraction-strength",
        )


def _document(row: Fields) -> Mapping[str, Any]:
    return {"question": row.text("question"), "answer": row.text("answer")}


def _example(row: Fields, group: str) -> Example:
    # A few perturbed answers of TOFU are there twice, or are the answer.
    answer = row.text("answer")
    perturbed = dict.fromkeys(row.row.get("perturbed_answer") or ())
    perturbed.pop(answer, None)
    clean = Fields(row.where, {**row.row, "perturbed_answer": list(perturbed)})
    paraphrases, wrong = row.texts("paraphrased_answer"), clean.texts("perturbed_answer")
    return Example(row.text("question"), answer, paraphrases, wrong, group=group)
