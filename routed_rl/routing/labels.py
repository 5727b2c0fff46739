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
    """Independent errors on labels: each is lost with ``miss_rate``, else replaced with ``flip_rate``
    by another label, uniformly.

    Raises:
        ValueError: if a rate is not between 0 and 1.
    """

    miss_rate: float = 0.0
    flip_rate: float = 0.0

    def __post_init__(self) -> None:
        check_probability("miss_rate", self.miss_rate)
        check_probability("flip_rate", self.flip_rate)

    def apply(self, labels: np.ndarray, num_labels: int, rng: np.random.Generator) -> np.ndarray:
        """A corrupted copy of ``labels``, integers of any shape in -1 (unlabelled) … num_labels-1.

        Three numbers are drawn per entry whatever the rates, so a label's fate depends on its place alone.
        A label cannot be flipped where it is the only one (``num_labels`` 1).

        Raises:
            ValueError: for labels that are no integers in this range.
        """
        if labels.dtype.kind not in "iu" or (labels.size and not -1 <= labels.min() <= labels.max() < num_labels):
            raise ValueError(f"labels must be integers in -1 … {num_labels - 1}, got {labels!r}")
        missed = rng.random(labels.shape) < self.miss_rate
        flipped = rng.random(labels.shape) < self.flip_rate
        offset = 1 + np.floor(rng.random(labels.shape) * max(num_labels - 1, 1)).astype(labels.dtype)
        noisy = np.where(flipped, (labels + offset) % max(num_labels, 1), labels) if num_labels > 1 else labels
        return np.where((labels < 0) | missed, -1, noisy)
