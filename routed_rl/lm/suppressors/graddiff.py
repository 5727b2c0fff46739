"""GradDiff (Liu et al. 2022): up the loss of what is to be forgotten, and down that of the rest."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import token_losses
from routed_rl.lm.suppressors.suppressor import Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective


@dataclass(frozen=True)
class GradDiff(Suppressor):
    """``- CE_forget + a * CE_retain`` (UNDO, its public code). It has no least value: run for long, it diverges."""

    retain_weight: float = 3.0
    """weight of the loss on what is retained"""

    recipe = brief(steps=30, learning_rate=3e-4)

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """:meth:`Suppressor.loss`."""

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses = token_losses(trained, batch)
            return self.retain_weight * mean(losses, retain_targets, batch) - mean(losses, forget_targets, batch)

        return loss
