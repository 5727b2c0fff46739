"""SimNPO (Fan et al. 2024): negative preference optimisation with the loss per token and without a reference model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import token_losses
from routed_rl.lm.suppressors.suppressor import (
    Suppressor,
    brief,
    forget_examples,
    forget_targets,
    mean,
    retain_targets,
)
from routed_rl.lm.training import Objective


def simnpo(nll: Tensor, beta: float, margin: float) -> Tensor:
    """Return ``- 2/b * log sigmoid(b * (nll - d))``, of each example's loss per token."""
    return -2 / beta * F.logsigmoid(beta * (nll - margin))


@dataclass(frozen=True)
class SimNpo(Suppressor):
    """``simnpo`` on forget examples, plus ``a * CE_retain``."""

    retain_weight: float = 1.0
    """weight of the retain loss: a"""
    beta: float = 4.5
    """how sharply the gradient falls around the margin, as an example gets less likely: b"""
    margin: float = 0.75
    """loss per token in nats where the gradient has fallen by half: d; with 0, well-known examples teach little"""

    recipe = brief(steps=60, learning_rate=3e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta:
            raise ValueError("beta of SimNpo must be more than 0, got 0")

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses, forget = token_losses(trained, batch), forget_targets(batch)
            counts = batch.by_example(forget.to(losses.dtype)).clamp_min(1)
            per_token = batch.by_example(losses.masked_fill(~forget, 0.0)) / counts
            held = mean(losses, retain_targets, batch)
            return mean(simnpo(per_token, self.beta, self.margin), forget_examples, batch) + self.retain_weight * held

        return loss
