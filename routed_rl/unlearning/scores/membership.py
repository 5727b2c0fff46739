"""Membership inference: can forget texts be told from texts that were never learned?

An attack gives each text a number, which should be larger for texts that were learned. Its area under the ROC curve
(AUC) is the chance that a forget text has a larger number than a holdout text. 0.5 says that they cannot be told apart.
Less than 0.5 says that forget texts stand out as unusually unlikely, which gives them away too: see
:class:`PrivacyLeakage`.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import FORGET, HOLDOUT, MEMBERS, TEXTS, Benchmark, Example
from routed_rl.unlearning.scores.reader import Reader, Tokens
from routed_rl.unlearning.scores.score import Best, Numbers, Score

LEAST_DEVIATION = 1e-3
"""Smallest standard deviation by which Min-K%++ divides (open-unlearning)."""


def area_under_curve(members: np.ndarray, others: np.ndarray) -> float:
    """Return the area under the ROC curve (AUC), from 0 to 1. 0.5 is chance.

    This is the chance that a member has a larger number than a text that was not learned. Equal numbers count half.
    NaN if a number is NaN.

    >>> area_under_curve(np.array([3.0, 1.0]), np.array([1.0, 0.0]))
    0.875

    Args:
        members: ``(members,)`` of texts that were learned.
        others: ``(others,)`` of texts that were not.
    """
    if np.isnan(members).any() or np.isnan(others).any():
        return np.nan
    in_order = np.sort(others)
    below, below_or_equal = (np.searchsorted(in_order, members, side) for side in ("left", "right"))
    return float((below + below_or_equal).mean() / 2 / len(others))


def zlib_ratio(log_probability: np.ndarray, text: str) -> float:
    """Return the mean log-probability of a text, divided by the bytes of its zlib compression.

    (Carlini et al. 2021, arXiv 2012.07805. They divide the logarithm of the perplexity.)

    >>> len(zlib.compress(b"aaaa")), zlib_ratio(np.array([-1.0, -2.0]), "aaaa")
    (12, -0.125)

    Args:
        log_probability: ``(N,)`` of each token of the text, in nats.
        text: the text.
    """
    return float(log_probability.mean() / len(zlib.compress(text.encode())))


def lowest_mean(numbers: np.ndarray, share: float) -> float:
    """Return the mean of a share of the numbers, the lowest ones; at least one.

    Min-K% takes it of log-probabilities (Shi et al. 2024, arXiv 2310.16789).

    >>> lowest_mean(np.array([-1.0, -4.0, -2.0, -3.0]), 0.5)
    -3.5

    Args:
        numbers: ``(N,)``, one for each token.
        share: ``k``, from 0 to 1.
    """
    return float(np.sort(numbers)[: max(1, int(len(numbers) * share))].mean())


def standardised(log_probability: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return how many standard deviations log-probabilities are above the mean of their place, ``(N,)``.

    (Min-K%++, Zhang et al. 2024, arXiv 2404.02936.)

    >>> standardised(np.array([-1.0]), np.array([-2.0]), np.array([0.5])).tolist()
    [2.0]

    Args:
        log_probability: ``(N,)`` of each token, in nats.
        mean, deviation: ``(N,)`` of the log-probability of a token that is drawn from the model's distribution.
            Deviations below 0.001 count as 0.001.
    """
    return np.asarray((log_probability - mean) / np.maximum(deviation, LEAST_DEVIATION))


def leakage(area: float, retrained: float) -> float:
    """Return ``(R - A) / (1 - R)``: how far an AUC ``A`` is from that of the retrained model, ``R``.

    (PrivLeak of MUSE, Shi et al. 2024, arXiv 2407.06460, which MUSE prints times 100. Its AUC
    is the chance that a forget text has the *larger* loss, so one minus this one.) Below 0, forget texts look learned:
    too little was unlearned. Above 0 they look less likely than texts that were never learned: too much. The smallest
    leakage is -1, and there is no largest one. It is infinite or NaN if ``R`` is 1.

    >>> leakage(1.0, 0.5), leakage(0.5, 0.5), leakage(0.0, 0.5)
    (-1.0, 0.0, 1.0)

    Args:
        area, retrained: chance that a forget text has the larger number than a holdout text, of the model and of the
            retrained model.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(retrained - area, 1 - retrained))


class MembershipInference(Score):
    """AUC of an attack that tells forget texts from holdout texts. Texts are answers where there are no others.

    Attackers of prompts change both.
    """

    best: ClassVar[Best] = "half"

    def sets(self, benchmark: Benchmark) -> tuple[Sequence[Example], Sequence[Example]] | None:
        """Return the forget and the holdout examples, both texts or both questions, or None."""
        for ending in (MEMBERS, TEXTS, ""):
            pair = (benchmark.sets.get(f"{FORGET}{ending}", ()), benchmark.sets.get(f"{HOLDOUT}{ending}", ()))
            if all(pair):
                return pair
        return None

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the score is not defined; see :meth:`Score.undefined`."""
        return None if self.sets(benchmark) else "the benchmark has no holdout set of the same kind as its forget set"

    def chance(self, benchmark: Benchmark) -> float | None:
        """Return 0.5; see :meth:`Score.chance`."""
        return 0.5

    def group(self, name: str) -> str:
        """Return the set: forget and holdout texts have nothing to do with each other; see :meth:`Score.group`."""
        return name

    def examples(self, reader: Reader) -> Numbers:
        """Return the attack's number for each text; see :meth:`Score.examples`."""
        found = self.sets(reader.benchmark)
        if found is None:
            raise ValueError(str(self.undefined(reader.benchmark)))
        return {name: self.numbers(reader, of) for name, of in zip((FORGET, HOLDOUT), found, strict=True)}

    def numbers(self, reader: Reader, examples: Sequence[Example]) -> np.ndarray:
        """Return the attack's number for each of these examples, larger for those that look learned."""
        read = zip(reader.answers(examples), examples, strict=True)
        return np.array([self.number(tokens, example) for tokens, example in read])

    @abstractmethod
    def number(self, tokens: Tokens, example: Example) -> float:
        """Return the attack's number for an example, larger if it looks learned."""

    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the AUC; see :meth:`Score.value`."""
        return area_under_curve(numbers[FORGET], numbers[HOLDOUT])


@dataclass(frozen=True)
class MembershipLoss(MembershipInference):
    """AUC by loss: the mean log-probability per token (Yeom et al. 2018)."""

    def number(self, tokens: Tokens, example: Example) -> float:
        """Return the mean log-probability."""
        return float(tokens.log_probability.mean())


@dataclass(frozen=True)
class MembershipZlib(MembershipInference):
    """AUC by loss relative to how well zlib compresses the text; see :func:`zlib_ratio`."""

    def number(self, tokens: Tokens, example: Example) -> float:
        """Return the ratio."""
        return zlib_ratio(tokens.log_probability, example.answer)


@dataclass(frozen=True)
class MembershipMinK(MembershipInference):
    """AUC by Min-K%: the mean log-probability of the least likely tokens; see :func:`lowest_mean`."""

    share: float = 0.2
    """share of the tokens, k"""

    def number(self, tokens: Tokens, example: Example) -> float:
        """Return the mean of the lowest log-probabilities."""
        return lowest_mean(tokens.log_probability, self.share)


@dataclass(frozen=True)
class MembershipMinKPlusPlus(MembershipMinK):
    """AUC by Min-K%++: Min-K% of standardised log-probabilities; see :func:`standardised`."""

    def number(self, tokens: Tokens, example: Example) -> float:
        """Return the mean of the lowest standardised log-probabilities."""
        return lowest_mean(standardised(tokens.log_probability, tokens.mean, tokens.deviation), self.share)


@dataclass(frozen=True)
class MembershipReference(MembershipLoss):
    """AUC by loss relative to the loss of the retrained model, for which it is 0.5 (Carlini et al. 2021)."""

    needs: ClassVar[Sequence[str]] = ("retrained",)

    def numbers(self, reader: Reader, examples: Sequence[Example]) -> np.ndarray:
        """Return the difference of the mean log-probabilities of both models."""
        return super().numbers(reader, examples) - super().numbers(reader.companions["retrained"], examples)


@dataclass(frozen=True)
class PrivacyLeakage(MembershipMinK):
    """How far the AUC of Min-K% is from that of the retrained model; see :func:`leakage` (MUSE).

    Below 0, too little was unlearned; above 0, too much.
    """

    share: float = 0.4
    """share of the tokens, k; MUSE's is 0.4"""

    best: ClassVar[Best] = "zero"
    limits: ClassVar[tuple[float | None, float | None]] = (-1.0, None)
    compared: ClassVar[bool] = True

    def chance(self, benchmark: Benchmark) -> float | None:
        """Return None: a model that guesses may leak."""
        return None

    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the leakage. It is no number if the retrained model's AUC is 1; see :meth:`Score.value`.

        Raises:
            ValueError: without the retrained model's numbers.
        """
        if retrained is None:
            raise ValueError("privacy leakage needs the numbers of the retrained model")
        return leakage(super().value(numbers), super().value(retrained))
