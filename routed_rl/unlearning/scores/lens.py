"""The logit lens: whether an inner layer still says the fact (nostalgebraist 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import FORGET
from routed_rl.unlearning.scores.inside import lens
from routed_rl.unlearning.scores.reader import Reader, Tokens
from routed_rl.unlearning.scores.score import Best, Numbers, SetScore


def best_layer(by_layer: Sequence[np.ndarray]) -> float:
    """Return the largest of the layers' means.

    >>> best_layer([np.array([0.0, 1.0]), np.array([1.0, 1.0])])
    1.0

    Args:
        by_layer: ``(examples,)`` for each layer.
    """
    return float(max(np.mean(each) for each in by_layer)) if not np.isnan(by_layer).any() else np.nan


@dataclass(frozen=True)
class LogitLens(SetScore):
    """Share of the fact's tokens that are likeliest by the residual stream of the best layer, for forget questions.

    The stream after a block goes through the final norm and the unembedding. It is read at the places that predict the
    tokens of the example's ``key``, after the true tokens before them. The last layer gives the model's own
    predictions, so the score is never smaller than theirs.
    """

    of: str = FORGET
    """set of examples"""

    best: ClassVar[Best] = "low"

    def examples(self, reader: Reader) -> Numbers:
        """Return the number of each example and layer; see :meth:`Score.examples`."""
        read = lens(reader, self.asked(reader.benchmark))
        numbers = np.array([[self.number(tokens) for tokens in layers] for layers in read])
        return {f"layer {layer}": of for layer, of in enumerate(numbers.T, 1)}

    @staticmethod
    def number(tokens: Tokens) -> float:
        """Return the number of a layer."""
        return np.nan if np.isnan(tokens.log_probability).any() else float(tokens.likeliest.mean())

    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the mean over examples at the best layer; see :meth:`Score.value`."""
        return best_layer(list(numbers.values()))


@dataclass(frozen=True)
class LogitLensProbability(LogitLens):
    """Probability of the fact by the residual stream of the best layer: the geometric mean over its tokens.

    See :class:`LogitLens`.
    """

    @staticmethod
    def number(tokens: Tokens) -> float:
        """Return the number of a layer."""
        return float(np.exp(tokens.log_probability.mean()))
