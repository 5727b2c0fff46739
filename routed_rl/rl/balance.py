"""A warning while a method that routes is trained: some module gets too few labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from routed_rl.rl.overseer import Overseer

ENOUGH = 500
"""Labelled episodes after which the warning is due."""
LEAST = 0.05
"""The share of the labels below which an outcome is too rare. (DistShift1: 0.02, and its module learned nothing.)"""


class LabelBalance:
    """Counts labelled episodes by outcome, and warns once if an outcome has hardly any of them.

    Only the labels of the overseer are counted, not predicted ones.

    Args:
        overseer: its outcomes are counted, if its method routes; other methods are never warned of.
        solo: whether modules act alone in some environments.
    """

    def __init__(self, overseer: Overseer, solo: bool) -> None:
        self.overseer, self.solo = overseer, solo
        self.counts = [0] * len(overseer.outcomes)
        self.done = not overseer.method.routed or len(self.counts) < 2

    def add(self, counts: Sequence[int]) -> None:
        """Count the labelled episodes of a rollout, one number per outcome."""
        if self.done:
            return
        self.counts = [total + count for total, count in zip(self.counts, counts, strict=True)]
        if (total := sum(self.counts)) < ENOUGH:
            return
        self.done = True
        if min(self.counts) >= LEAST * total:
            return
        rarest = self.overseer.outcomes[self.counts.index(min(self.counts))]
        advice = [] if self.solo else ["solo=1 (each module acts alone in some environments)"]
        advice += [] if self.overseer.predicts else ["Overseer(…, unlabelled='predicted')"]
        shown = ", ".join(
            f"{count} times on {name!r}" for name, count in zip(self.overseer.outcomes, self.counts, strict=True)
        )
        warnings.warn(
            f"the first {total} labelled episodes ended {shown}, so the module of {rarest!r} has little to learn from: "
            f"try {', '.join([*advice, 'more oversight'])}",
            stacklevel=2,
        )
