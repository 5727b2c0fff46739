"""MaxEnt, maximum entropy: make all next tokens equally likely on the forget set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import target_logits, target_losses
from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.lm.suppressors.suppressor import Reference, Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """Return ``KL(U; p) = - log V - 1/V * sum_v log p(v)`` of logits, over the last dimension."""
    return -math.log(logits.shape[-1]) - logits.log_softmax(dim=-1).mean(dim=-1)


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return ``KL(p_reference; p) = sum_v p_reference(v) * log(p_reference(v) / p(v))``, over the last dimension.

    Both arguments are logits.
    """
    reference = reference.log_softmax(dim=-1)
    return (reference.exp() * (reference - logits.log_softmax(dim=-1))).sum(dim=-1)


@dataclass(frozen=True)
class MaxEnt(Suppressor):
    """``KL(U; p)`` on the forget set, plus ``a`` times the retain term (UNDO's public code)."""

    retain_weight: float = 1.0
    """weight of the retain term: a"""
    retain: Literal["ce", "kl"] = "ce"
    """the retain term: cross-entropy, or the KL divergence from the original model"""

    recipe = brief(steps=60, learning_rate=3e-4)

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`. With the KL divergence the original model is run too."""
        return 1 + FORWARD_PASS * (self.retain == "kl")

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""
        reference = self._reference(model)
        return lambda trained, batch: self._terms(target_logits(trained, batch), batch, reference)

    def _reference(self, model: nn.Module) -> Reference | None:
        return Reference(model) if self.retain == "kl" else None

    def _terms(self, logits: Tensor, batch: Batch, reference: Reference | None) -> Tensor:
        """Return the sum of both terms, for logits ``(B, T - 1, V)``."""
        held = target_losses(logits, batch) if reference is None else divergence(reference.logits(batch), logits)
        forget = mean(divergence_from_uniform(logits), forget_targets, batch)
        return forget + self.retain_weight * mean(held, retain_targets, batch)
