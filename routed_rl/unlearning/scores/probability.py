"""Probability: how likely a model finds right answers (TOFU, Maini et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import FORGET, RETAIN, Example
from routed_rl.unlearning.scores.reader import Reader, Tokens
from routed_rl.unlearning.scores.score import Best, Field, MeanScore, Numbers


def mean_log_probability(log_probability: np.ndarray) -> float:
    """Return the mean log-probability of the tokens of an answer, ``(N,)``, in nats."""
    return float(log_probability.mean())


def probability(log_probability: np.ndarray) -> float:
    """Return ``P(a | q) ** (1 / N)``, from 0 to 1: the geometric mean of the probabilities of an answer's tokens.

    (TOFU, Maini et al. 2024, arXiv 2401.06121.)

    >>> round(probability(np.log([0.5, 0.125])), 6)
    0.25

    Args:
        log_probability: ``(N,)`` of each token of the answer, after those before it, in nats.
    """
    return float(np.exp(mean_log_probability(log_probability)))


def log_probabilities(reader: Reader, pairs: Sequence[tuple[Example, Sequence[str]]]) -> list[list[float]]:
    """Return the mean log-probability of several answers to each example, in nats."""
    flat = [(example, answer) for example, answers in pairs for answer in answers]
    read: Sequence[Tokens] = reader.answers([example for example, _ in flat], [answer for _, answer in flat])
    found = iter([mean_log_probability(tokens.log_probability) for tokens in read])
    return [[next(found) for _ in answers] for _, answers in pairs]


@dataclass(frozen=True)
class Probability(MeanScore):
    """Probability of forget answers, normalised by their length: the mean over examples; see :func:`probability`."""

    of: str = FORGET
    """set of examples"""

    best: ClassVar[Best] = "low"

    def examples(self, reader: Reader) -> Numbers:
        """Return the probability of each example; see :meth:`Score.examples`."""
        read = reader.answers(self.asked(reader.benchmark))
        return {"probability": np.array([probability(tokens.log_probability) for tokens in read])}


@dataclass(frozen=True)
class RetainedProbability(Probability):
    """Probability of retain answers, normalised by their length: the mean over examples."""

    of: str = RETAIN

    best: ClassVar[Best] = "high"


@dataclass(frozen=True)
class ParaphrasedProbability(Probability):
    """Probability of forget answers in other words: the mean over an example's paraphrases, then over examples."""

    field: ClassVar[Field] = "paraphrases"

    def examples(self, reader: Reader) -> Numbers:
        """Return the probability of each example; see :meth:`Score.examples`."""
        of = log_probabilities(reader, [(example, example.paraphrases) for example in self.asked(reader.benchmark)])
        return {"probability": np.array([np.exp(each).mean() for each in of])}
