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
    forget_rows,
    forget_targets,
    mean,
    retain_targets,
)
from routed_rl.lm.training import Objective


def simnpo(nll: Tensor, beta: float, margin: float) -> Tensor:
    """Return ``(B,)``: ``- 2/b * log sigmoid(b * (nll - d))``, of each row's loss per token ``(B,)``."""
    return -2 / beta * F.logsigmoid(beta * (nll - margin))


@dataclass(frozen=True)
class SimNpo(Suppressor):
    """:func:`simnpo` on forget rows, plus ``a * CE_retain``."""

    retain_weight: float = 1.0
    """weight of the retain loss: a"""
    beta: float = 4.5
    """how sharply the gradient falls around the margin, as a row gets less likely: b"""
    margin: float = 0.75
    """loss per token in nats where the gradient has fallen by half: d; with 0, rows that are known well teach little"""

    recipe = brief(steps=60, learning_rate=3e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta:
            raise ValueError("beta of SimNpo must be more than 0, got 0")

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses, forget = token_losses(trained, batch), forget_targets(batch)
            per_token = losses.masked_fill(~forget, 0.0).sum(dim=1) / forget.sum(dim=1).clamp_min(1)
            held = mean(losses, retain_targets, batch)
            return mean(simnpo(per_token, self.beta, self.margin), forget_rows, batch) + self.retain_weight * held

        return loss
