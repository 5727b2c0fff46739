"""Fine-tuning on forget documents: the relearning attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim
from routed_rl.unlearning.attacks import relearn
from routed_rl.unlearning.benchmarks.benchmark import Row

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of its steps after which an attempt measures the model. Most knowledge comes back early."""


@dataclass(frozen=True)
class FineTuning(ArenaAttack):
    """Fine-tune all weights on the forget documents, once for each learning rate (UNDO, Lee et al. 2025).

    The attacker has all forget documents.
    """

    learning_rates: tuple[float, ...] = (1e-3, 3e-4, 1e-4)
    """learning rate of each attempt; AdamW, constant"""

    group: ClassVar[Group] = "weights"
    sweep: ClassVar[bool] = True
    rank: ClassVar[int | None] = None
    """rank of the adapters that are trained; None: all weights"""

    @property
    def attempts(self) -> Sequence[Setting]:
        """The learning rates."""
        return self.learning_rates

    def documents(self, victim: Victim) -> Sequence[Row]:
        """Return the attacker's documents."""
        return victim.benchmark.forget

    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Fine-tune at one learning rate; see :meth:`ArenaAttack.attempt`."""
        measured = sorted({round(victim.steps * share) for share in SHARES} - {0})
        steps, done = iter(measured), [0]

        def measure(tuned: nn.Module) -> dict[str, float]:
            return {"main": look(next(steps), tuned)}

        relearn(
            victim.model,
            victim.batches(self.documents(victim), "attack"),
            victim.steps,
            float(setting),
            measured,
            measure,
            rank=self.rank,
            gradient_checkpointing=victim.gradient_checkpointing,
            accumulate=victim.accumulate,
            seed=victim.seed,
            on_step=lambda step: done.append(step + 1),
        )
        return float(done[-1])
