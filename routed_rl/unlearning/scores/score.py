"""The base class of scores, and their intervals over examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import FORGET, Benchmark, Example
from routed_rl.unlearning.scores.reader import Reader

Best = Literal["low", "high", "zero", "half"]
"""Which numbers an unlearned model should have: those of a model that knows little of the forget set, and keeps the
rest. ``half`` is 0.5."""
Numbers = Mapping[str, np.ndarray]
"""A number for each example, ``(examples,)`` float64, by name. Arrays of one length belong to the same examples."""
Field = Literal["", "paraphrases", "perturbed"]
"""A field of an example that not every example has. Empty: none."""
FIELDS: Mapping[Field, str] = {"paraphrases": "paraphrases", "perturbed": "perturbed answers"}
"""What errors call the fields of an example."""
DRAWS = 1000
"""Draws of a bootstrap."""


class Score(ABC):
    """A number that says what a model knows of a benchmark.

    A score of your own is a subclass that can be made without arguments: ``--scores my_module:MyScore``.

    Attributes:
        best: whether an unlearned model should have a low or a high number, zero or 0.5.
        limits: the smallest and the largest number that there can be. None: there is no limit.
        bootstrapped: whether an interval over examples means something. That of a p-value does not.
        compared: whether the number needs those of the retrained model, which never learned the forget set.
        needs: names of the ``companions`` of :class:`Reader` that :meth:`examples` reads.
    """

    best: ClassVar[Best]
    limits: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)
    bootstrapped: ClassVar[bool] = True
    compared: ClassVar[bool] = False
    needs: ClassVar[Sequence[str]] = ()

    @property
    def about_kept(self) -> bool:
        """Whether it says what a model has kept, and not what it knows of the forget set."""
        return False

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the score is not defined for a benchmark, such as "no example has choices". None: it is."""
        return None

    def chance(self, benchmark: Benchmark) -> float | None:
        """Return the number of a model that only guesses. None: it has no such number, or it is not known."""
        return None

    def group(self, name: str) -> str:
        """Return what the array of this name in :meth:`examples` is about, for intervals over examples.

        Arrays of one group and one length have a number for each of the same examples, which are drawn together.
        """
        return ""

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
            retrained: the same of the retrained model, if ``compared`` is true.
        """


class SetScore(Score):
    """A score of the examples of one set.

    Attributes:
        of: the set.
        field: what an example must have to count, ``paraphrases`` or ``perturbed``. Empty: all count.
    """

    of: str
    field: ClassVar[Field] = ""

    @property
    def about_kept(self) -> bool:
        """Whether it is of another set than the forget set."""
        return not self.of.startswith(FORGET)

    def asked(self, benchmark: Benchmark) -> Sequence[Example]:
        """Return the examples that are measured."""
        return [example for example in benchmark.examples(self.of) if not self.field or getattr(example, self.field)]

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the score is not defined; see :meth:`Score.undefined`."""
        if self.asked(benchmark):
            return None
        if not benchmark.examples(self.of):
            return f"the benchmark has no examples of the {self.of} set"
        return f"no example of the {self.of} set has {FIELDS[self.field]}"


class MeanScore(SetScore):
    """A score that is the mean of one number for each example of a set."""

    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the mean; see :meth:`Score.value`."""
        (each,) = numbers.values()
        return float(each.mean())


def interval(
    score: Score, numbers: Numbers, retrained: Numbers | None = None, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """Return the 95 % interval of a score over examples: the percentile bootstrap (Efron 1979).

    Examples are drawn again with replacement, and the score is taken of these, ``draws`` times. Arrays of one length
    and one :meth:`Score.group` are drawn together. The retrained model's numbers stay as they are. The ends are NaN if
    the score is not finite or has no such interval.
    """
    chance = np.random.default_rng(seed)
    if not (score.bootstrapped and np.isfinite(score.value(numbers, retrained))):
        return float("nan"), float("nan")
    drawn = {name: (score.group(name), len(of)) for name, of in numbers.items()}
    found = []
    for _ in range(draws):
        rows = {key: chance.integers(key[1], size=key[1]) for key in sorted(set(drawn.values()))}
        found.append(score.value({name: of[rows[drawn[name]]] for name, of in numbers.items()}, retrained))
    low, high = np.nanpercentile(found, [2.5, 97.5]) if np.isfinite(found).any() else (np.nan, np.nan)
    return float(low), float(high)
