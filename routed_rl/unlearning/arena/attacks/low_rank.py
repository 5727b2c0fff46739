"""Low-rank fine-tuning on forget documents."""

from __future__ import annotations

from dataclasses import dataclass

from routed_rl.unlearning.arena.attacks.fine_tuning import FineTuning


@dataclass(frozen=True)
class LowRank(FineTuning):
    """Fine-tune low-rank adapters on the forget documents, once for each learning rate (LoRA, Hu et al. 2021).

    The attacker has all forget documents. Adapters need higher learning rates than all weights.
    """

    learning_rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3)
    """learning rate of each attempt; AdamW, constant"""
    rank: int | None = 8  # type: ignore[misc]
    """rank of the adapters"""
