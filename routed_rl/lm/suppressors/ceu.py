"""CE-U, cross-entropy unlearning (Yang 2025): learn the model's own distribution without the true token."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import target_logits, target_losses
from routed_rl.lm.suppressors.suppressor import Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.suppressors.undial import undial
from routed_rl.lm.training import Objective


@dataclass(frozen=True)
class Ceu(Suppressor):
    """``- sum_v q(v) log p(v)`` on the forget set, plus ``a * CE_retain`` (in the paper a is 0).

    ``p`` is the model's current distribution. ``q`` is the same distribution with the true token's probability set to
    0 and the others renormalised. It has no gradient. This is UNDIAL with an infinite strength, and with the current
    model in place of the original one.
    """

    retain_weight: float = 1.0
    """weight of the retain loss: a"""

    recipe = brief(steps=60, learning_rate=3e-4)

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            logits = target_logits(trained, batch)
            forgotten = undial(logits, logits.detach(), batch.targets, math.inf)
            held = mean(target_losses(logits, batch), retain_targets, batch)
            return mean(forgotten, forget_targets, batch) + self.retain_weight * held

        return loss
