"""Warnings while an agent is trained: no episode ends, no label arrives, or some module gets too few."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from routed_rl.rl.overseer import Overseer

ENOUGH = 500
"""Labelled episodes after which unequal labels are a reason for a warning."""
SILENT = 1000
"""Episodes with an outcome, none of them labelled, after which a warning is due."""
LONG = 2000
"""Steps of each environment without the end of an episode, after which a warning is due."""
FEW = 5
"""Overseen episodes with an outcome, after which chance hardly explains that no other episode has one."""
LEAST = 0.05
"""The share of the labels below which an outcome is too rare. (DistShift1: 0.02, and its module learned nothing.)"""


def hidden_outcomes(overseen: int, unseen: int, without: int) -> str | None:
    """Return a warning if the environment seems to hide the outcomes of episodes that are not overseen; else None.

    Args:
        overseen: episodes that reached an outcome and were overseen.
        unseen: episodes that reached an outcome and were not overseen.
        without: episodes that ended without an outcome before any step limit.
    """
    if overseen < FEW or unseen or 4 * without < overseen:
        return None
    return (
        f"{overseen} episodes were overseen and reached an outcome, and {without} others ended with outcome None before"
        ' any step limit: if the environment hides outcomes that nobody saw, set info["outcome"] in these episodes too'
    )


class LabelBalance:
    """Counts episodes by label. It warns if labels are missing, or if one outcome has too few.

    Only the labels of the overseer are counted, not predicted ones.

    Args:
        overseer: its outcomes are counted. Only methods that route are warned of unequal labels.
        solo: whether modules act alone in some environments.
    """

    def __init__(self, overseer: Overseer, solo: bool) -> None:
        self.overseer, self.solo = overseer, solo
        self.counts, self.without, self.steps = [0] * len(overseer.rewards), 0, 0
        self.said: set[str] = set()

    def add(self, counts: Sequence[int], without: int, steps: int) -> None:
        """Count the episodes of a rollout by label, in the order of ``overseer.rewards``, and its steps.

        Args:
            counts: episodes by label: one number per outcome, then "unseen" and "none".
            without: episodes that ended without an outcome before any step limit.
            steps: the steps of each environment.

        Warns:
            UserWarning: if episodes do not end, if outcomes are hidden, or if labels are missing or very unequal; once
                for each.
        """
        if sum(self.counts[: self.overseer.reached]) >= ENOUGH:
            return
        self.counts = [total + count for total, count in zip(self.counts, counts, strict=True)]
        self.without, self.steps = self.without + without, self.steps + steps
        for name, message in self._messages().items():
            if message and name not in self.said:
                self.said.add(name)
                warnings.warn(message, stacklevel=2)

    def _messages(self) -> dict[str, str | None]:
        """What is wrong with the episodes so far, and what to do about it."""
        labelled, unseen = sum(self.counts[: self.overseer.reached]), self.counts[self.overseer.reached]
        found: dict[str, str | None] = {}
        if self.steps >= LONG and not sum(self.counts):
            found["endless"] = (
                f"no episode has ended in {self.steps} steps of each environment, and labels come at the end of an "
                "episode: if episodes are not that long, let them end, for example by gymnasium.wrappers.TimeLimit"
            )
        if unseen >= SILENT and not labelled:
            found["silent"] = (
                f"none of the first {unseen} episodes that reached an outcome was overseen, so the learner has no "
                "label: oversee more, and see what check_oversight_env(env, outcomes) counts"
            )
        if not self.overseer.method.sees_all and self.overseer.oversight != 1:
            found["hidden"] = hidden_outcomes(labelled, unseen, self.without)
        if labelled >= ENOUGH:
            found["unequal"] = self._unequal(self.counts[: self.overseer.reached])
        return found

    def _unequal(self, labelled: Sequence[int]) -> str | None:
        if not self.overseer.method.routed or len(labelled) < 2 or min(labelled) >= LEAST * sum(labelled):
            return None
        rarest = self.overseer.outcomes[labelled.index(min(labelled))]
        advice = [] if self.solo else ["solo=1 (each module acts alone in some environments)"]
        advice += [] if self.overseer.predicts else ["Overseer(…, unlabelled='predicted')"]
        shown = ", ".join(
            f"{count} times on {name!r}" for name, count in zip(self.overseer.outcomes, labelled, strict=True)
        )
        return (
            f"the first {sum(labelled)} labelled episodes ended {shown}, so the module of {rarest!r} has little to "
            f"learn from: try {', '.join([*advice, 'more oversight'])}"
        )
