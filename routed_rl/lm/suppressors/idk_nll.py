"""IDK with likelihood (Maini et al. 2024, TOFU): learn to answer forget questions with "I don't know"."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from routed_rl.lm.alternatives import DONT_KNOW
from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import token_losses
from routed_rl.lm.suppressors.suppressor import Suppressor, alternative_targets, brief, mean, retain_targets
from routed_rl.lm.training import Objective


@dataclass(frozen=True)
class IdkNll(Suppressor):
    """``CE_alternative + a * CE_retain``. The original answers of the forget set are not used."""

    retain_weight: float = 1.0
    """weight of the retain loss: a"""

    alternatives = DONT_KNOW
    recipe = brief(steps=60, learning_rate=3e-4)

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses = token_losses(trained, batch)
            return mean(losses, alternative_targets, batch) + self.retain_weight * mean(losses, retain_targets, batch)

        return loss
