"""Warnings while an agent is trained: no episode ends, no label arrives, or some module gets too few."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from routed_rl.rl.overseer import Overseer

ENOUGH = 500
"""Labelled episodes after which the warning is due."""
SILENT = 1000
"""Episodes with an outcome, none of them labelled, after which a warning is due."""
LONG = 2000
"""Steps of each environment without the end of an episode, after which a warning is due."""
FEW, MANY = 10, 100
"""Labelled episodes, and others without an outcome, after which outcomes are known to be hidden."""
HIDDEN = (
    "{} episodes were overseen and reached an outcome, and {} others ended with outcome None before any step limit: "
    'does the environment hide the outcome where nobody sees it? info["outcome"] must have it there too'
)
"""For environments whose author thought that an unseen outcome must be None."""
LEAST = 0.05
"""The share of the labels below which an outcome is too rare. (DistShift1: 0.02, and its module learned nothing.)"""


class LabelBalance:
    """Counts episodes by label. It warns once if labels are missing, or if one outcome has too few.

    Only the labels of the overseer are counted, not predicted ones.

    Args:
        overseer: its outcomes are counted. Only methods that route are warned of unequal labels.
        solo: whether modules act alone in some environments.
    """

    def __init__(self, overseer: Overseer, solo: bool) -> None:
        self.overseer, self.solo = overseer, solo
        self.counts, self.hidden, self.steps = [0] * len(overseer.rewards), 0, 0
        self.done = False

    def add(self, counts: Sequence[int], hidden: int, steps: int) -> None:
        """Count the episodes of a rollout by label, in the order of ``overseer.rewards``, and its steps.

        Args:
            counts: episodes by label: one number per outcome, then "unseen" and "none".
            hidden: episodes that ended without an outcome before any step limit.
            steps: the steps of each environment.

        Warns:
            UserWarning: once, if episodes do not end, or if labels are missing or very unequal.
        """
        if self.done:
            return
        self.counts = [total + count for total, count in zip(self.counts, counts, strict=True)]
        self.hidden, self.steps = self.hidden + hidden, self.steps + steps
        if message := self._message():
            warnings.warn(message, stacklevel=2)
        self.done = bool(message) or sum(self.counts[: self.overseer.reached]) >= ENOUGH

    def _message(self) -> str | None:
        """What is wrong with the episodes so far, and what to do about it."""
        labelled, unseen = self.counts[: self.overseer.reached], self.counts[self.overseer.reached]
        total = sum(labelled)
        if self.steps >= LONG and not sum(self.counts):
            return (
                f"no episode has ended in the first {self.steps} steps of each environment, and labels come at the end "
                "of an episode: let it end, for example by gymnasium.wrappers.TimeLimit"
            )
        if unseen >= SILENT and not total:
            return (
                f"none of the first {unseen} episodes that reached an outcome was overseen, so the learner has no "
                "label: oversee more, and see what check_oversight_env(env, outcomes) counts"
            )
        if total >= FEW and self.hidden >= MANY and not unseen:
            return HIDDEN.format(total, self.hidden)
        if total < ENOUGH:
            return None
        if not self.overseer.method.routed or len(labelled) < 2 or min(labelled) >= LEAST * total:
            return None
        rarest = self.overseer.outcomes[labelled.index(min(labelled))]
        advice = [] if self.solo else ["solo=1 (each module acts alone in some environments)"]
        advice += [] if self.overseer.predicts else ["Overseer(…, unlabelled='predicted')"]
        shown = ", ".join(
            f"{count} times on {name!r}" for name, count in zip(self.overseer.outcomes, labelled, strict=True)
        )
        return (
            f"the first {total} labelled episodes ended {shown}, so the module of {rarest!r} has little to learn from: "
            f"try {', '.join([*advice, 'more oversight'])}"
        )
