"""Label noise: a real supervisor misses some labels and gets others wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def check_probability(name: str, value: float) -> float:
    """Return ``value`` as a float; raise a ValueError that names the option unless it is between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class LabelNoise:
    """Random errors on labels: some labels are lost, others are replaced by a wrong label.

    Args:
        miss_rate: probability that a label is lost (the sample becomes unlabelled).
        flip_rate: probability that a label that is not lost is replaced by another label, drawn uniformly.
        hard_first: give difficult samples more errors. Of n labelled samples, the one that is harder than r others
            has ``(2 r + 1) / n`` times the rate. The mean rate stays the same, so a rate must be at most 1/2.

    Raises:
        ValueError: if a rate is not between 0 and 1, or is above 1/2 with ``hard_first``.
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
        """Return a copy of ``labels`` with errors.

        Every entry draws three random numbers, whatever the rates and labels. So the numbers that decide about an
        entry depend only on its position in the array. With ``num_labels`` 1 there is no other label to flip to.

        Args:
            labels: integers of any shape, from -1 (unlabelled) to ``num_labels`` - 1.
            num_labels: how many labels there are.
            rng: the source of the random numbers.
            difficulty: numbers of the shape of ``labels``, larger for harder samples. ``hard_first`` needs them.

        Raises:
            ValueError: if labels are not integers in this range, or ``hard_first`` is set without a difficulty.
        """
        if labels.dtype.kind not in "iu" or (labels.size and not -1 <= labels.min() <= labels.max() < num_labels):
            raise ValueError(f"labels must be integers in -1 … {num_labels - 1}, got {labels!r}")
        weight = np.ones(labels.shape)
        if self.hard_first:
            if difficulty is None or difficulty.shape != labels.shape:
                raise ValueError(
                    f"hard_first needs a difficulty array of the labels' shape {labels.shape}, got {difficulty!r}"
                )
            given = labels >= 0
            easier = np.argsort(np.argsort(difficulty[given], kind="stable"))
            weight[given] = (2 * easier + 1) / max(given.sum(), 1)
        missed = rng.random(labels.shape) < self.miss_rate * weight
        flipped = rng.random(labels.shape) < self.flip_rate * weight
        offset = 1 + np.floor(rng.random(labels.shape) * max(num_labels - 1, 1)).astype(labels.dtype)
        noisy = np.where(flipped, (labels + offset) % max(num_labels, 1), labels) if num_labels > 1 else labels
        return np.where((labels < 0) | missed, -1, noisy)
