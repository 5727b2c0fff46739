"""Fine-tuning on forget documents, the relearning attack: with all weights, or with low-rank adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim
from routed_rl.unlearning.attacks import relearn
from routed_rl.unlearning.benchmarks.benchmark import Row

LOOKS = 4
"""Times that an attempt measures the model."""


@dataclass(frozen=True)
class FineTuning(ArenaAttack):
    """Fine-tune all weights on the forget documents, once for each learning rate (UNDO, Lee et al. 2025)."""

    learning_rates: tuple[float, ...] = (1e-3, 3e-4, 1e-4)
    """learning rate of each attempt; AdamW, constant"""
    rank: int | None = None
    """rank of low-rank adapters; None: all weights"""

    group: ClassVar[Group] = "weights"

    @property
    def attempts(self) -> Sequence[Setting]:
        """The learning rates."""
        return self.learning_rates

    def documents(self, victim: Victim) -> Sequence[Row]:
        """Return the attacker's documents."""
        return victim.benchmark.forget

    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Fine-tune at one learning rate; see :meth:`ArenaAttack.attempt`."""
        measured = sorted({round(victim.steps * (i + 1) / LOOKS) for i in range(LOOKS)} - {0})
        steps = iter(measured)

        def measure(tuned: nn.Module) -> dict[str, float]:
            return {"main": look(next(steps), tuned)}

        source = victim.batches(self.documents(victim), "attack")
        relearn(victim.model, source, victim.steps, float(setting), measured, measure, rank=self.rank, seed=victim.seed)
        return float(victim.steps)
