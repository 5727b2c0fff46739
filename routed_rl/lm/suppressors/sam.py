"""SAM, sharpness-aware minimisation (Foret et al. 2021): take the gradient a little uphill of the current weights."""

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
    """Another suppressor, with its gradient taken at ``θ + r * g / (|g| + 1e-12)``.

    ``g`` is the gradient of the suppressor's whole loss, ``|g|`` its norm over all trained weights (UNDO's public
    code). The method that it is named after goes uphill on the forget term only.
    """

    of: Suppressor = field(default_factory=MaxEnt)
    """the suppressor whose gradient is taken"""
    rho: float = 0.01
    """how far uphill: r"""

    @property
    def recipe(self) -> Training:
        """The training settings of the suppressor."""
        return self.of.recipe

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`: twice that of the suppressor."""
        return 2 * self.of.cost

    @property
    def alternatives(self) -> tuple[str, ...] | None:
        """:attr:`Suppressor.alternatives` of the suppressor."""
        return self.of.alternatives

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss of the suppressor; see :meth:`Suppressor.loss`."""
        return self.of.loss(model, seed)

    def gradient(self, model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """Compute the gradient uphill, and return the loss at the current weights, which stay the same to the bit."""
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
