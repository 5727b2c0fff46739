"""Labels as a real supervisor gives them: some are missing, some are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def check_probability(name: str, value: float) -> float:
    """``value`` as a float; ValueError naming it unless it is a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class LabelNoise:
    """Errors on labels: each is lost with ``miss_rate``, else replaced with ``flip_rate`` by another label, uniformly.

    Args:
        hard_first: the errors fall on difficult samples: of n labelled together, one that r are easier than has
            ``(2 r + 1) / n`` times the rate, so that the mean rate stays what it is, up to a rate of 1/2.

    Raises:
        ValueError: if a rate is not between 0 and 1, or above 1/2 with ``hard_first``.
    """

    miss_rate: float = 0.0
    flip_rate: float = 0.0
    hard_first: bool = False

    def __post_init__(self) -> None:
        check_probability("miss_rate", self.miss_rate)
        check_probability("flip_rate", self.flip_rate)
        if self.hard_first and max(self.miss_rate, self.flip_rate) > 0.5:
            raise ValueError(f"with hard_first, rates must be at most 0.5, got {max(self.miss_rate, self.flip_rate)}")

    def apply(
        self, labels: np.ndarray, num_labels: int, rng: np.random.Generator, difficulty: np.ndarray | None = None
    ) -> np.ndarray:
        """A corrupted copy of ``labels``, integers of any shape in -1 (unlabelled) … num_labels-1.

        Three numbers are drawn per entry whatever the rates, so a label's fate depends on its place alone.
        A label cannot be flipped where it is the only one (``num_labels`` 1).

        Args:
            difficulty: numbers of the same shape, which ``hard_first`` needs.

        Raises:
            ValueError: for labels that are no integers in this range, or if the difficulty is needed and not given.
        """
        if labels.dtype.kind not in "iu" or (labels.size and not -1 <= labels.min() <= labels.max() < num_labels):
            raise ValueError(f"labels must be integers in -1 … {num_labels - 1}, got {labels!r}")
        weight = np.ones(labels.shape)
        if self.hard_first:
            if difficulty is None or difficulty.shape != labels.shape:
                raise ValueError(f"hard_first needs a difficulty for each of {labels.shape} labels, got {difficulty!r}")
            given = labels >= 0
            easier = np.argsort(np.argsort(difficulty[given], kind="stable"))
            weight[given] = (2 * easier + 1) / max(given.sum(), 1)
        missed = rng.random(labels.shape) < self.miss_rate * weight
        flipped = rng.random(labels.shape) < self.flip_rate * weight
        offset = 1 + np.floor(rng.random(labels.shape) * max(num_labels - 1, 1)).astype(labels.dtype)
        noisy = np.where(flipped, (labels + offset) % max(num_labels, 1), labels) if num_labels > 1 else labels
        return np.where((labels < 0) | missed, -1, noisy)
