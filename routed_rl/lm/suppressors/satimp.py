"""SatImp (Yang et al. 2025): gradient ascent, weighted by the saturation and the importance of each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import token_losses
from routed_rl.lm.suppressors.suppressor import Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective


@dataclass(frozen=True)
class SatImp(Suppressor):
    """``- mean(p^b (1 - p)^c * CE)`` over forget targets, plus ``a * CE_retain``.

    ``p`` is the model's current probability of the token. Saturation, ``p^b``, leaves out tokens that are unlikely
    already. Importance, ``(1 - p)^c``, leaves out tokens that are nearly certain, such as the rest of a word. Neither
    weight has a gradient.
    """

    retain_weight: float = 1.0
    """weight of the retain loss: a"""
    saturation: float = 5.0
    """how much less unlikely tokens count: b"""
    importance: float = 1.0
    """how much less nearly certain tokens count: c; with 0, this is WGA"""

    recipe = brief(steps=100, learning_rate=3e-4)

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses = token_losses(trained, batch)
            weights = (-self.saturation * losses.detach()).exp()
            weights = weights * (-torch.expm1(-losses.detach())) ** self.importance  # 1 - p, also where p is nearly 1
            held = mean(losses, retain_targets, batch)
            return self.retain_weight * held - mean(weights * losses, forget_targets, batch)

        return loss
