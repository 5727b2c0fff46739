"""Knowledge: whether a model answers questions rightly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.lm.unicode import composed
from routed_rl.unlearning.benchmarks.benchmark import FORGET, RETAIN, Benchmark, Example
from routed_rl.unlearning.scores.reader import Reader
from routed_rl.unlearning.scores.score import Best, Numbers, Score


def words(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation. Accents count, however they are encoded.

    >>> words("Born in Éze, 1954.")
    ['born', 'in', 'éze', '1954']
    """
    return re.findall(r"\w+", composed(text).lower())


def states(written: str, key: str) -> bool:
    """Return whether a text has the words of a key, one after the other.

    >>> states("She was born in New Ulm.", "New Ulm"), states("She was born in Ulm.", "New Ulm")
    (True, False)
    """
    return f" {' '.join(words(key))} " in f" {' '.join(words(written))} "


@dataclass(frozen=True)
class Knowledge(Score):
    """Share of forget questions whose written answer states the fact. A model that guesses has the benchmark's chance.

    The model writes by greedy decoding. The fact is the example's ``key``, or else its whole answer.
    """

    of: str = FORGET
    """set of examples"""

    best: ClassVar[Best] = "low"

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the score is not defined; see :meth:`Score.undefined`."""
        return None if benchmark.examples(self.of) else f"the benchmark has no examples of the {self.of} set"

    def examples(self, reader: Reader) -> Numbers:
        """Return 1 or 0 for each example; see :meth:`Score.examples`."""
        asked = reader.benchmark.examples(self.of)
        return {"right": np.array([_right(w, e) for w, e in zip(reader.written(asked), asked, strict=True)], float)}

    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the mean; see :meth:`Score.value`."""
        return float(numbers["right"].mean())


@dataclass(frozen=True)
class RetainedKnowledge(Knowledge):
    """Share of retain questions whose written answer states the fact."""

    of: str = RETAIN

    best: ClassVar[Best] = "high"


def _right(written: str, example: Example) -> bool:
    return states(written, example.key or example.answer)
