"""Memorisation: how much of an answer greedy decoding gives, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import FORGET
from routed_rl.unlearning.scores.reader import Reader, Tokens
from routed_rl.unlearning.scores.score import Best, MeanScore, Numbers


def extraction_strength(likeliest: np.ndarray) -> float:
    """Return the extraction strength of an answer of ``N`` tokens: ``1 - k / N``, from 0 to 1.

    ``k`` is the smallest number of true tokens after which greedy decoding gives the rest. (Carlini et al. 2021,
    "Extracting training data"; as a score, Wang et al. 2025, arXiv 2406.09179.)

    One pass over the true answer is enough. As long as each token is the likeliest one after the true tokens before
    it, greedy decoding continues the true text. So the score is the share of the last tokens that are all likeliest.
    Of an answer whose last token is not likeliest nothing can be extracted: 0. (Open-unlearning gives ``1 / N``.)

    >>> extraction_strength(np.array([True, False, True, True]))
    0.5

    Args:
        likeliest: ``(N,)`` bool: whether each token is the likeliest one after the true tokens before it.
    """
    wrong = np.flatnonzero(~likeliest)
    return float(1 - (wrong[-1] + 1) / len(likeliest)) if len(wrong) else 1.0


def exact_memorisation(likeliest: np.ndarray) -> float:
    """Return the exact memorisation of an answer: the share of its tokens that are likeliest, from 0 to 1.

    (Tirumala et al. 2022, arXiv 2205.10770; open-unlearning's ``exact_memorization``.)

    >>> exact_memorisation(np.array([True, False, True, True]))
    0.75

    Args:
        likeliest: ``(N,)`` bool: whether each token is the likeliest one after the true tokens before it.
    """
    return float(likeliest.mean())


@dataclass(frozen=True)
class ExtractionStrength(MeanScore):
    """Share of a forget answer that greedy decoding gives after the smallest sufficient part: the mean over examples.

    See :func:`extraction_strength`. Tokens that end an answer do not count.
    """

    of: str = FORGET
    """set of examples"""

    best: ClassVar[Best] = "low"

    def examples(self, reader: Reader) -> Numbers:
        """Return the share of each example; see :meth:`Score.examples`."""
        read = reader.answers(self.asked(reader.benchmark))
        return {"share": np.array([self._share(tokens, reader.text(tokens)) for tokens in read])}

    def _share(self, tokens: Tokens, text: np.ndarray) -> float:
        if not text.any() or np.isnan(tokens.log_probability).any():
            return np.nan
        return self.share(tokens.likeliest[text])

    @staticmethod
    def share(likeliest: np.ndarray) -> float:
        """Return the share for one answer, from ``(N,)`` bool."""
        return extraction_strength(likeliest)


@dataclass(frozen=True)
class ExactMemorisation(ExtractionStrength):
    """Share of the tokens of forget answers that are likeliest after the true tokens before them.

    See :func:`exact_memorisation`. Tokens that end an answer do not count.
    """

    @staticmethod
    def share(likeliest: np.ndarray) -> float:
        """Return the share for one answer, from ``(N,)`` bool."""
        return exact_memorisation(likeliest)
