"""Warnings while an agent is trained: no label arrives, or some module gets too few."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from routed_rl.rl.overseer import Overseer

ENOUGH = 500
"""Labelled episodes after which the warning is due."""
SILENT = 1000
"""Episodes with an outcome, none of them labelled, after which a warning is due."""
LEAST = 0.05
"""The share of the labels below which an outcome is too rare. (DistShift1: 0.02, and its module learned nothing.)"""


class LabelBalance:
    """Counts labelled episodes by outcome. It warns once if labels are missing, or if one outcome has too few.

    Only the labels of the overseer are counted, not predicted ones.

    Args:
        overseer: its outcomes are counted. Only methods that route are warned of unequal labels.
        solo: whether modules act alone in some environments.
    """

    def __init__(self, overseer: Overseer, solo: bool) -> None:
        self.overseer, self.solo = overseer, solo
        self.counts, self.unseen = [0] * len(overseer.outcomes), 0
        self.done = False

    def add(self, counts: Sequence[int], unseen: int) -> None:
        """Count the episodes of a rollout: the labelled ones, one number per outcome, and those with an unseen outcome.

        Warns:
            UserWarning: once, if labels are missing or very unequal.
        """
        if self.done:
            return
        self.counts = [total + count for total, count in zip(self.counts, counts, strict=True)]
        self.unseen += unseen
        total = sum(self.counts)
        if not total and self.unseen >= SILENT:
            self.done = True
            warnings.warn(
                f"none of the first {self.unseen} episodes that reached an outcome was overseen, so the learner has no "
                "label: oversee more, and see what check_oversight_env(env, outcomes) counts",
                stacklevel=2,
            )
        if total < ENOUGH:
            return
        self.done = True
        if not self.overseer.method.routed or len(self.counts) < 2 or min(self.counts) >= LEAST * total:
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
