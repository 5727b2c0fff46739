"""Unlearning depth score: how much of the fact is gone from inner layers (Lee et al. 2026, arXiv 2605.24614)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import FORGET
from routed_rl.unlearning.scores.inside import losses_by_patching
from routed_rl.unlearning.scores.reader import Reader
from routed_rl.unlearning.scores.score import Best, Numbers, SetScore

THRESHOLD = 0.05
"""Smallest loss of log-probability, in nats, by which a layer of the retrained model counts as one without the fact."""


def erased(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the unlearned model lacks of the fact, and what the retrained model lacks, ``(examples,)`` each.

    Both are sums over the layers at which the retrained model lacks more than 0.05 nats. The unlearned model's loss
    counts from 0 up to the retrained model's. Both are NaN for an example with a NaN. (Lee et al. 2026, arXiv
    2605.24614.)

    >>> lacked, known = erased(np.array([[0.5, 3.0, 9.0]]), np.array([[1.0, 2.0, 0.0]]))
    >>> lacked.tolist(), known.tolist()
    ([2.5], [3.0])

    Args:
        unlearned, retrained: ``(examples, L)``, in nats: how much less likely the original model finds the fact if its
            residual stream after a layer is replaced by that of this model.
    """
    encoding = retrained > THRESHOLD
    known = np.where(encoding, retrained, 0.0)
    lacked = np.where(encoding, np.clip(unlearned, 0.0, np.maximum(retrained, 0.0)), 0.0)
    unknown = np.isnan(unlearned).any(axis=1) | np.isnan(retrained).any(axis=1)
    return np.where(unknown, np.nan, lacked.sum(axis=1)), np.where(unknown, np.nan, known.sum(axis=1))


def depth(lacked: np.ndarray, known: np.ndarray) -> float:
    """Return the mean over examples of the share of the fact that is erased, from 0 to 1.

    Examples of which the retrained model lacks nothing do not count. NaN if no example counts, or for a NaN in
    ``lacked``. (Lee et al. 2026, arXiv 2605.24614.)

    >>> depth(np.array([2.5, 0.0, 0.0]), np.array([3.0, 2.0, 0.0]))
    0.4166666666666667

    Args:
        lacked, known: ``(examples,)`` each, from :func:`erased`.
    """
    if np.isnan(lacked).any() or not (counts := known > 0).any():
        return np.nan
    return float((lacked[counts] / known[counts]).mean())


@dataclass(frozen=True)
class UnlearningDepth(SetScore):
    """Share of the fact that is erased from inner layers: 0 as in the original model, 1 as in the retrained model.

    This is activation patching. At one layer after the other, the residual stream of the original model is replaced by
    that of the unlearned model, where it predicts the tokens of the example's ``key``. Their log-probability falls by
    what that layer of the unlearned model lacks of the fact. The same with the retrained model says how much can be
    lacking. A layer's weight is what the retrained model lacks; see :func:`erased` and :func:`depth`.
    """

    of: str = FORGET
    """set of examples"""

    best: ClassVar[Best] = "high"
    needs: ClassVar[Sequence[str]] = ("original", "retrained")

    def examples(self, reader: Reader) -> Numbers:
        """Return the losses of log-probability that count, of both models; see :meth:`Score.examples`."""
        asked = self.asked(reader.benchmark)
        original, retrained = (reader.companions[name] for name in self.needs)
        lost = [losses_by_patching(original, model, asked) for model in (reader.model, retrained.model)]
        lacked, known = erased(*lost)
        return {"lacked": lacked, "known": known}

    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the mean share; see :meth:`Score.value`."""
        return depth(numbers["lacked"], numbers["known"])
