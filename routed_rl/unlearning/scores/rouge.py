"""ROUGE-L between written and true answers (Lin 2004), as TOFU and MUSE use it.

The usual library ``rouge-score`` drops every letter outside a to z, so Korean text has no words at all, and it needs
NLTK. Here words are those of :func:`~routed_rl.unlearning.scores.knowledge.words`, in any script. They are not stemmed;
TOFU stems English words. Without stemming, both give the same numbers for English.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import FORGET, RETAIN, TEXTS, Benchmark, Example
from routed_rl.unlearning.scores.knowledge import words
from routed_rl.unlearning.scores.reader import Reader
from routed_rl.unlearning.scores.score import Best, MeanScore, Numbers


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest sequence that is in both, with gaps.

    >>> longest_common_subsequence("she was born in Oslo".split(), "born in cold Oslo".split())
    3
    """
    best = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for i, candidate in enumerate(other, 1):
            above = best[i]
            best[i] = diagonal + 1 if word == candidate else max(above, best[i - 1])
            diagonal = above
    return best[-1]


def rouge_l(written: str, true: str) -> tuple[float, float]:
    """Return the recall and the F1 of ROUGE-L, each from 0 to 1 (Lin 2004).

    Recall is the share of the true words that are written, in the same order. Precision is the share of the written
    words that are true, in the same order. F1 is their harmonic mean. Recall and F1 are 0 if a text has no words.

    Case and punctuation do not count. Words may be of any script, and are not stemmed.

    >>> recall, f1 = rouge_l("She was born in Oslo, Norway.", "Born in Oslo.")
    >>> round(recall, 6), round(f1, 6)
    (1.0, 0.666667)
    """
    found, wanted = words(written), words(true)
    common = longest_common_subsequence(found, wanted)
    return (common / len(wanted), 2 * common / (len(found) + len(wanted))) if common else (0.0, 0.0)


@dataclass(frozen=True)
class RougeRecall(MeanScore):
    """ROUGE-L recall of written forget answers: the share of the true words that are written, in order (TOFU).

    The model writes by greedy decoding.
    """

    of: str = FORGET
    """set of examples"""

    best: ClassVar[Best] = "low"

    def examples(self, reader: Reader) -> Numbers:
        """Return recall or F1 of each example; see :meth:`Score.examples`."""
        asked = self.asked(reader.benchmark)
        pairs = zip(reader.written(asked), asked, strict=True)
        each = [(np.nan, np.nan) if written is None else rouge_l(written, e.answer) for written, e in pairs]
        return {"rouge": np.array([self.part(*both) for both in each])}

    @staticmethod
    def part(recall: float, f1: float) -> float:
        """Return the one of both that is the score."""
        return recall


@dataclass(frozen=True)
class RetainedRougeRecall(RougeRecall):
    """ROUGE-L recall of written retain answers (TOFU)."""

    of: str = RETAIN

    best: ClassVar[Best] = "high"


@dataclass(frozen=True)
class KnowledgeMemorisation(RougeRecall):
    """ROUGE-L F1 of written answers to forget questions (MUSE's KnowMem, Shi et al. 2024, arXiv 2407.06460, C2)."""

    def asked(self, benchmark: Benchmark) -> Sequence[Example]:
        """Return the questions."""
        return benchmark.sets.get(self.of, ())

    @staticmethod
    def part(recall: float, f1: float) -> float:
        """Return F1."""
        return f1


@dataclass(frozen=True)
class RetainedKnowledgeMemorisation(KnowledgeMemorisation):
    """ROUGE-L F1 of written answers to retain questions (MUSE's utility, C4)."""

    of: str = RETAIN

    best: ClassVar[Best] = "high"


@dataclass(frozen=True)
class VerbatimMemorisation(KnowledgeMemorisation):
    """ROUGE-L F1 of the continuations of forget texts (MUSE's VerbMem, C1)."""

    of: str = f"{FORGET}{TEXTS}"
