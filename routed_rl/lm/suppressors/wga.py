"""WGA, weighted gradient ascent (Wang et al. 2025): raise the loss of likely forget tokens, less that of others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import token_losses
from routed_rl.lm.suppressors.suppressor import Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective


@dataclass(frozen=True)
class Wga(Suppressor):
    """``- mean(p^b * CE)`` over forget targets, plus ``a * CE_retain``.

    ``p`` is the model's current probability of the token. The weight ``p^b`` has no gradient. It goes to 0 with ``p``,
    so the ascent fades, unlike that of GradDiff.
    """

    retain_weight: float = 1.0
    """weight of the retain loss: a"""
    beta: float = 1.0
    """how much less unlikely tokens count: b; with 0, all count equally (GradDiff)"""

    recipe = brief(steps=60, learning_rate=3e-4)

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses = token_losses(trained, batch)
            weights = (-self.beta * losses.detach()).exp()
            held = mean(losses, retain_targets, batch)
            return self.retain_weight * held - mean(weights * losses, forget_targets, batch)

        return loss
