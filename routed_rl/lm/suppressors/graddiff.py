"""GradDiff (Liu et al. 2022): raise the loss on the forget set, and lower the loss on the retain set."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import token_losses
from routed_rl.lm.suppressors.suppressor import Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective


@dataclass(frozen=True)
class GradDiff(Suppressor):
    """``- CE_forget + a * CE_retain`` (UNDO's public code). The loss has no minimum, so a long training diverges."""

    retain_weight: float = 3.0
    """weight of the retain loss: a"""

    recipe = brief(steps=30, learning_rate=3e-4)

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses = token_losses(trained, batch)
            return self.retain_weight * mean(losses, retain_targets, batch) - mean(losses, forget_targets, batch)

        return loss
