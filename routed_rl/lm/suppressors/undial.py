"""UNDIAL (Dong et al. 2024): learn the model's own distribution on the forget set, with true tokens' logits lowered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import target_logits, target_losses
from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.lm.suppressors.suppressor import Reference, Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective


def undial(logits: Tensor, reference: Tensor, targets: Tensor, strength: float) -> Tensor:
    """Return ``(B, T - 1)``: the cross-entropy of logits against ``softmax(reference - s * onehot(target))``.

    Args:
        logits: ``(B, T - 1, V)``, of the model in training.
        reference: ``(B, T - 1, V)``, of the original model.
        targets: ``(B, T - 1)``.
        strength: s.
    """
    lowered = torch.full_like(reference[..., :1], -strength)
    aim = reference.scatter_add(-1, targets[..., None], lowered).softmax(dim=-1)
    return -(aim * logits.log_softmax(dim=-1)).sum(dim=-1)


@dataclass(frozen=True)
class Undial(Suppressor):
    """``undial`` on the forget set, against the original model, plus ``a * CE_retain``."""

    retain_weight: float = 1.0
    """weight of the retain loss: a"""
    strength: float = 10.0
    """how far the true token's logit is lowered: s"""

    recipe = brief(steps=60, learning_rate=3e-4)

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`. The original model is run too."""
        return 1 + FORWARD_PASS

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""
        reference = Reference(model)

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            logits = target_logits(trained, batch)
            forgotten = undial(logits, reference.logits(batch), batch.targets, self.strength)
            held = mean(target_losses(logits, batch), retain_targets, batch)
            return mean(forgotten, forget_targets, batch) + self.retain_weight * held

        return loss
