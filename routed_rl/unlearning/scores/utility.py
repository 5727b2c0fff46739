"""Model utility: what is left of the sets that a model should keep (TOFU, Maini et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import RETAIN, TEXTS, Benchmark
from routed_rl.unlearning.scores.choices import NormalisedProbability
from routed_rl.unlearning.scores.probability import Probability
from routed_rl.unlearning.scores.reader import Reader
from routed_rl.unlearning.scores.rouge import RougeRecall
from routed_rl.unlearning.scores.score import Best, Numbers, Score, SetScore
from routed_rl.unlearning.scores.truth_ratio import RetainedTruthRatio

PROBABILITY, ROUGE, RATIO = PARTS = (" probability", " ROUGE", " truth ratio")
"""What is measured of each set."""


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of numbers from 0 to 1. It is 0 if one of them is, and NaN if one of them is NaN.

    (TOFU, Maini et al. 2024, arXiv 2401.06121, for model utility.)

    >>> harmonic_mean([0.5, 1.0, 0.25]), harmonic_mean([0.0, 1.0])
    (0.42857142857142855, 0.0)
    """
    each = np.array(values)
    with np.errstate(divide="ignore"):
        return float(len(each) / (1 / each).sum())


@dataclass(frozen=True)
class ModelUtility(Score):
    """Harmonic mean of probability, ROUGE-L recall and truth ratio over all sets to keep (TOFU).

    As in TOFU, the probability is plain for the retain set, and :func:`normalised_probability` for other sets with
    several options. Sets without perturbed answers have no truth ratio. Sets of texts count if there are no others.
    """

    best: ClassVar[Best] = "high"

    @property
    def about_kept(self) -> bool:
        """True."""
        return True

    def parts(self, benchmark: Benchmark) -> dict[str, SetScore]:
        """Return the scores whose mean this is, by name: the set, and what is measured of it."""
        kept = [name for name in benchmark.kept if not name.endswith(TEXTS)] or benchmark.kept
        found: dict[str, SetScore] = {}
        for name in kept:
            normalised = NormalisedProbability(name)
            plain = name == RETAIN or normalised.undefined(benchmark)
            found[f"{name}{PROBABILITY}"] = Probability(name) if plain else normalised
            found[f"{name}{ROUGE}"] = RougeRecall(name)
            if not (ratio := RetainedTruthRatio(name)).undefined(benchmark):
                found[f"{name}{RATIO}"] = ratio
        return found

    def group(self, name: str) -> str:
        """Return the set; see :meth:`Score.group`."""
        part, _, _ = name.partition(": ")
        return next(part.removesuffix(end) for end in PARTS if part.endswith(end))

    def examples(self, reader: Reader) -> Numbers:
        """Return the numbers of each part; see :meth:`Score.examples`."""
        each = {name: part.examples(reader) for name, part in self.parts(reader.benchmark).items()}
        return {f"{name}: {key}": of for name, numbers in each.items() for key, of in numbers.items()}

    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the harmonic mean of the means; see :meth:`Score.value`."""
        ratio = RetainedTruthRatio()
        means = [
            ratio.value({"log_ratio": of}) if name.endswith(": log_ratio") else float(of.mean())
            for name, of in numbers.items()
        ]
        return harmonic_mean(means)
