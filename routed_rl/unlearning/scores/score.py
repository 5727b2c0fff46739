"""The base class of scores, and their intervals over examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import Benchmark
from routed_rl.unlearning.scores.reader import Reader

Best = Literal["low", "high", "zero"]
"""Which numbers an unlearned model should have: those of a model that knows little of the forget set, and keeps the
rest."""
Numbers = Mapping[str, np.ndarray]
"""A number for each example, ``(examples,)`` float64, by name. Arrays of one length belong to the same examples."""
DRAWS = 1000
"""Draws of a bootstrap."""


class Score(ABC):
    """A number that says what a model knows of a benchmark.

    A score of your own is a subclass that can be made without arguments: ``--score my_module:MyScore``.

    Attributes:
        best: whether an unlearned model should have a low or a high number, or zero.
        limits: the smallest and the largest number that there can be. None: there is no limit.
        compared: whether the number needs those of the retrained model, which never learned the forget set.
        companions: other models that the reader needs: "full", the model before it was unlearned, or "retrained".
    """

    best: ClassVar[Best]
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)
    compared: ClassVar[bool] = False
    companions: ClassVar[tuple[str, ...]] = ()

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the score is not defined for a benchmark, such as "no example has choices". None: it is."""
        return None

    @abstractmethod
    def examples(self, reader: Reader) -> Numbers:
        """Return the numbers of single examples. A diverged model may give NaN.

        Args:
            reader: a model, with a benchmark for which the score is defined.
        """

    @abstractmethod
    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the score.

        Args:
            numbers: from :meth:`examples`.
            retrained: the same of the retrained model, if the score is :attr:`compared`.
        """


def interval(
    score: Score, numbers: Numbers, retrained: Numbers | None = None, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """Return the 95 % interval of a score over examples: the percentile bootstrap (Efron 1979).

    Examples are drawn again with replacement, and the score is taken of these, ``draws`` times. Arrays of one length
    are drawn together. The retrained model's numbers stay as they are.
    """
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        rows = {length: chance.integers(length, size=length) for length in sorted({len(of) for of in numbers.values()})}
        found.append(score.value({name: of[rows[len(of)]] for name, of in numbers.items()}, retrained))
    low, high = np.nanpercentile(found, [2.5, 97.5]) if np.isfinite(found).any() else (np.nan, np.nan)
    return float(low), float(high)
