"""Fine-tuning on retain documents alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from routed_rl.unlearning.arena.attacks.attack import Victim
from routed_rl.unlearning.arena.attacks.fine_tuning import FineTuning
from routed_rl.unlearning.benchmarks.benchmark import Row


@dataclass(frozen=True)
class RetainOnly(FineTuning):
    """Fine-tune all weights on the retain documents, once for each learning rate (Siddiqui et al. 2025).

    The attacker has all retain documents and nothing of the forget set. So knowledge that comes back was in the
    weights.
    """

    learning_rates: tuple[float, ...] = (3e-3, 1e-3, 3e-4)
    """learning rate of each attempt; AdamW, constant"""

    def documents(self, victim: Victim) -> Sequence[Row]:
        """Return the retain documents."""
        return victim.benchmark.retain
