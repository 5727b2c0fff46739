"""NPO, negative preference optimisation (Zhang et al. 2024): make the forget set less likely than it was before."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import token_losses
from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.lm.suppressors.suppressor import (
    ReferenceLosses,
    Suppressor,
    brief,
    forget_examples,
    forget_targets,
    mean,
    retain_targets,
)
from routed_rl.lm.training import Objective


def npo(nll: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return ``- 2/b * log sigmoid(b * (nll - nll_reference))``, of each example's summed losses.

    The value falls as an example's loss rises. It falls more slowly the more this loss exceeds the reference's.
    """
    return -2 / beta * F.logsigmoid(beta * (nll - reference))


@dataclass(frozen=True)
class Npo(Suppressor):
    """``npo`` on forget examples, plus ``a * CE_retain``. As ``b`` goes to 0, it becomes gradient ascent.

    Of the original model it needs only a number for each forget example. So the original model need not be kept: see
    :class:`~routed_rl.lm.suppressors.suppressor.ReferenceLosses`.
    """

    retain_weight: float = 1.0
    """weight of the retain loss: a"""
    beta: float = 0.1
    """how soon an example counts as unlikely enough: b"""

    recipe = brief(steps=60, learning_rate=3e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta:
            raise ValueError("beta of Npo must be more than 0, got 0: for the limit at 0 take GradDiff")

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`. The original model is run too, unless its losses are known."""
        return 1 + FORWARD_PASS

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""
        reference = ReferenceLosses(model)

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses = token_losses(trained, batch)
            now = batch.by_example(losses.masked_fill(~forget_targets(batch), 0.0))
            then = reference(batch)
            held = mean(losses, retain_targets, batch)
            return mean(npo(now, then, self.beta), forget_examples, batch) + self.retain_weight * held

        return loss
