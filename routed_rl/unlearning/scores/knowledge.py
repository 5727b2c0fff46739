"""Knowledge: whether a model answers questions rightly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.lm.unicode import composed
from routed_rl.unlearning.benchmarks.benchmark import FORGET, RETAIN, Example
from routed_rl.unlearning.scores.reader import Reader
from routed_rl.unlearning.scores.score import Best, MeanScore, Numbers


def words(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation. Accents count, however they are encoded.

    >>> words("Born in Éze, 1954.")
    ['born', 'in', 'éze', '1954']
    """
    return re.findall(r"\w+", composed(text).lower())


def states(written: str, key: str) -> bool:
    """Return whether a text has the words of a key, one after the other.

    Case, punctuation and the encoding of accents do not count.

    >>> states("She was born in New Ulm.", "New Ulm"), states("She was born in Ulm.", "New Ulm")
    (True, False)
    """
    return f" {' '.join(words(key))} " in f" {' '.join(words(written))} "


@dataclass(frozen=True)
class Knowledge(MeanScore):
    """Share of forget questions whose written answer states the fact.

    The model writes by greedy decoding. The fact is the example's ``key``, or else its whole answer. A model that
    guesses has the chance of the benchmark, not 0.
    """

    of: str = FORGET
    """set of examples"""

    best: ClassVar[Best] = "low"

    def examples(self, reader: Reader) -> Numbers:
        """Return 1 or 0 for each example; see :meth:`Score.examples`."""
        asked = self.asked(reader.benchmark)
        return {"right": np.array([_right(w, e) for w, e in zip(reader.written(asked), asked, strict=True)])}


@dataclass(frozen=True)
class RetainedKnowledge(Knowledge):
    """Share of retain questions whose written answer states the fact."""

    of: str = RETAIN

    best: ClassVar[Best] = "high"


def _right(written: str | None, example: Example) -> float:
    return np.nan if written is None else float(states(written, example.key or example.answer))
