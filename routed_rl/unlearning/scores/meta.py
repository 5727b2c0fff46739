"""Meta-evaluation: whether a score can be trusted.

Some models are known to have learned the forget set, and others not to have. A score is measured on both, before and
after changes such as quantisation and fine-tuning. (OpenUnlearning, Dorna et al. 2025, arXiv 2506.12618. The symmetric
forms of robustness are those of Lee et al. 2026, arXiv 2605.24614.)

All functions take values of a score that rises with knowledge. :func:`rising` turns values of other scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from routed_rl.unlearning.scores.membership import area_under_curve
from routed_rl.unlearning.scores.score import Score
from routed_rl.unlearning.scores.utility import harmonic_mean


def rising(score: Score, value: float) -> float:
    """Return a score's value so that more knowledge of the forget set gives more.

    A score for which low is best stays as it is. One for which high is best is taken from its largest value, or from 0
    where it has none. Of one for which zero or a half is best, the distance from it is taken.
    """
    if score.best == "low":
        return value
    if score.best == "half":
        return abs(value - 0.5)
    return abs(value) if score.best == "zero" else (score.limits[1] or 0.0) - value


def faithfulness(knowing: Sequence[float], unknowing: Sequence[float]) -> float:
    """Return the chance that a model that knows has a larger value than one that does not: the AUC. 0.5 is chance.

    (OpenUnlearning, Dorna et al. 2025, arXiv 2506.12618.)

    >>> faithfulness([0.9, 0.4], [0.1, 0.4])
    0.875

    Args:
        knowing: values of models that learned the forget set, among other data.
        unknowing: values of models that learned other data alone.
    """
    return area_under_curve(np.array(knowing), np.array(unknowing))


def _likeness(one: float, other: float, gap: float) -> float:
    """Return one minus a gap, as a share of both numbers together. Nothing against nothing is alike."""
    together = abs(one) + abs(other)
    return 1.0 if together == 0 else 1 - gap / together


def stability(before: float, after: float) -> float:
    """Return how little a value moves under a change that adds no knowledge, such as quantisation: from 0 to 1.

    ``1 - |after - before| / (|before| + |after|)``, which is 1 if the value does not move. (Lee et al. 2026, arXiv
    2605.24614. OpenUnlearning's ``min(before / after, 1)`` counts rises only.)

    >>> stability(0.25, 0.75), stability(0.75, 0.25), stability(0.0, 0.0)
    (0.5, 0.5, 1.0)
    """
    return _likeness(before, after, abs(after - before))


def following(unlearned: tuple[float, float], retrained: tuple[float, float]) -> float:
    """Return how closely the change of a value by relearning matches that of the retrained model: from 0 to 1.

    ``1 - |U - R| / (|U| + |R|)``, where ``U`` and ``R`` are the changes. It is 1 if both are equal.

    A score may miss knowledge that is left in an unlearned model. Such a score jumps when the model is fine-tuned on
    the forget set, while that of the retrained model rises slowly. (Lee et al. 2026, arXiv 2605.24614.
    OpenUnlearning's ``min(R / U, 1)`` counts larger rises only.)

    >>> following((0.0, 0.75), (0.0, 0.25)), following((0.25, 0.5), (0.0, 0.25))
    (0.5, 1.0)

    Args:
        unlearned, retrained: values before and after the change.
    """
    moved, expected = unlearned[1] - unlearned[0], retrained[1] - retrained[0]
    return _likeness(moved, expected, abs(moved - expected))


@dataclass(frozen=True)
class Trust:
    """How far a score can be trusted.

    Attributes:
        faithfulness: see :func:`faithfulness`.
        stability: the mean of :func:`stability`. NaN: nothing was measured.
        following: the mean of :func:`following`. NaN: nothing was measured.
    """

    faithfulness: float
    stability: float
    following: float

    @property
    def robustness(self) -> float:
        """The harmonic mean of stability and following."""
        return harmonic_mean([self.stability, self.following])


def trust(
    knowing: Sequence[float],
    unknowing: Sequence[float],
    changed: Iterable[tuple[float, float]] = (),
    relearned: Iterable[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> Trust:
    """Return how far a score can be trusted, from its values for models whose truth is known.

    Without knowing or unknowing models, faithfulness is NaN.

    Args:
        knowing, unknowing: as for :func:`faithfulness`.
        changed: values of models before and after a change that adds no knowledge.
        relearned: values of unlearned models before and after fine-tuning on forget documents, each with the same of
            the retrained model.
    """
    stable = [stability(*pair) for pair in changed]
    follows = [following(unlearned, retrained) for unlearned, retrained in relearned]
    means = [float(np.mean(each)) if each else np.nan for each in (stable, follows)]
    return Trust(faithfulness(knowing, unknowing) if knowing and unknowing else np.nan, *means)
