"""Sharpness-aware minimisation (Foret et al. 2021): a gradient that also holds a little uphill of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from routed_rl.lm.processes import undivided
from routed_rl.lm.suppressors.maxent import MaxEnt
from routed_rl.lm.suppressors.suppressor import Suppressor
from routed_rl.lm.training import Objective, Training


@dataclass(frozen=True)
class Sam(Suppressor):
    """Another suppressor, by its gradient at ``θ + r * g / (|g| + 1e-12)``: ``g`` is the gradient of all of its loss,
    the norm that over all that is trained (UNDO, its public code; the method that it is called after goes uphill on
    the forget term alone)."""

    of: Suppressor = field(default_factory=MaxEnt)
    """the suppressor"""
    rho: float = 0.01
    """how far uphill: r"""

    @property
    def recipe(self) -> Training:
        """That of the suppressor."""
        return self.of.recipe

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`: twice the suppressor's."""
        return 2 * self.of.cost

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """:meth:`Suppressor.loss`."""
        return self.of.loss(model, seed)

    def gradient(self, model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """The gradient uphill, while the model stays where it is to the bit; the loss is that where it is."""
        loss = compute()
        learning = {parameter: parameter.grad for parameter in model.parameters() if parameter.grad is not None}
        norm = float(undivided(nn.utils.get_total_norm(list(learning.values()))))
        before = [parameter.detach().clone() for parameter in learning]
        with torch.no_grad():
            for parameter, gradient in learning.items():
                parameter.add_(gradient, alpha=self.rho / (norm + 1e-12))
        model.zero_grad()
        try:
            compute()
        finally:
            with torch.no_grad():
                for parameter, kept in zip(learning, before, strict=True):
                    parameter.copy_(kept)
        return loss
