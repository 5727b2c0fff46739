"""Negative preference optimisation (Zhang et al. 2024): what is to be forgotten, less likely than it was before."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import target_losses, token_losses
from routed_rl.lm.suppressors.suppressor import (
    FORWARD_PASS,
    Reference,
    Suppressor,
    brief,
    forget_rows,
    forget_targets,
    mean,
    retain_targets,
)
from routed_rl.lm.training import Objective


def npo(nll: Tensor, reference: Tensor, beta: float) -> Tensor:
    """``- 2/b * log sigmoid(b * (nll - nll_reference))``, of each row's summed losses ``(B,)``: it falls as they rise,
    the less the further they are from the reference's."""
    return -2 / beta * F.logsigmoid(beta * (nll - reference))


@dataclass(frozen=True)
class Npo(Suppressor):
    """:func:`npo` of rows to forget, and ``a * CE_retain``. As ``b`` goes to 0 it becomes gradient ascent."""

    retain_weight: float = 1.0
    """weight of the loss on what is retained"""
    beta: float = 0.1
    """how soon a row is unlikely enough"""

    recipe = brief(steps=60, learning_rate=3e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta:
            raise ValueError("beta of Npo must be more than 0; GradDiff is what it comes to there")

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`: the model as it was is run too."""
        return 1 + FORWARD_PASS

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """:meth:`Suppressor.loss`."""
        reference = Reference(model)

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses = token_losses(trained, batch)
            others = ~forget_targets(batch)
            before = target_losses(reference.logits(batch), batch)
            now, then = (each.masked_fill(others, 0.0).sum(dim=1) for each in (losses, before))
            held = mean(losses, retain_targets, batch)
            return mean(npo(now, then, self.beta), forget_rows, batch) + self.retain_weight * held

        return loss
