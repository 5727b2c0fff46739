"""Solved questions before each question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np

from routed_rl.runs import derive_seed
from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim
from routed_rl.unlearning.arena.attacks.halves import group_of
from routed_rl.unlearning.benchmarks.benchmark import FORGET, RETAIN, Example


@dataclass(frozen=True)
class FewShot(ArenaAttack):
    """Write solved questions before each question.

    In the first attempt they are from the retain set, so the attacker has nothing of the forget set. In the second they
    are other forget questions with their answers, but never of the question's own group. The seed draws them.
    """

    count: int = 4
    """number of solved questions, or as many as there are positions for"""

    group: ClassVar[Group] = "prompts"

    @property
    def attempts(self) -> Sequence[Setting]:
        """The sets of the solved questions."""
        return (RETAIN, FORGET)

    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Ask once; see :meth:`ArenaAttack.attempt`."""
        solved = victim.benchmark.examples(str(setting))
        order = np.random.default_rng(derive_seed(victim.seed, "few-shot", str(setting))).permutation(len(solved))

        @cache
        def change(example: Example) -> Example:
            shots = [solved[i] for i in order if group_of(solved[i]) != group_of(example)][: self.count]
            while shots:
                longer = with_shots(example, shots)
                if victim.fits(longer):
                    return longer
                shots.pop()
            return example

        look(0, victim.model, change)
        return 0.0


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """Return an example whose prompt begins with solved questions, one a line."""
    solved = [f"{shot.prompt} {shot.answer}" if shot.chat else shot.prompt + shot.answer for shot in shots]
    return replace(example, prompt="\n".join([*solved, example.prompt]))
