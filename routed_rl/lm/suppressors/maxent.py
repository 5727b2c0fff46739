"""Maximum entropy: of what is to be forgotten, any token is as likely as any other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import target_logits, target_losses
from routed_rl.lm.suppressors.suppressor import (
    FORWARD_PASS,
    Reference,
    Suppressor,
    brief,
    forget_targets,
    mean,
    retain_targets,
)
from routed_rl.lm.training import Objective


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """``KL(U; p) = - log V - 1/V * sum_v log p(v)``, over the last dimension."""
    return -math.log(logits.shape[-1]) - logits.log_softmax(dim=-1).mean(dim=-1)


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """``KL(p_reference; p) = sum_v p_reference(v) * log(p_reference(v) / p(v))`` of logits, over the last dimension."""
    reference = reference.log_softmax(dim=-1)
    return (reference.exp() * (reference - logits.log_softmax(dim=-1))).sum(dim=-1)


@dataclass(frozen=True)
class MaxEnt(Suppressor):
    """``KL(U; p)`` of what is forgotten, and ``a`` times the retain term (UNDO, its public code)."""

    retain_weight: float = 1.0
    """weight of the retain term"""
    retain: Literal["ce", "kl"] = "ce"
    """the retain term: cross-entropy, or the divergence from what the model said before"""

    recipe = brief(steps=60, learning_rate=3e-4)

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`: for a divergence the model as it was is run too."""
        return 1 + FORWARD_PASS * (self.retain == "kl")

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """:meth:`Suppressor.loss`."""
        reference = self._reference(model)
        return lambda trained, batch: self._terms(target_logits(trained, batch), batch, reference)

    def _reference(self, model: nn.Module) -> Reference | None:
        return Reference(model) if self.retain == "kl" else None

    def _terms(self, logits: Tensor, batch: Batch, reference: Reference | None) -> Tensor:
        """Both terms, of ``(B, T - 1, V)``."""
        held = target_losses(logits, batch) if reference is None else divergence(reference.logits(batch), logits)
        forget = mean(divergence_from_uniform(logits), forget_targets, batch)
        return forget + self.retain_weight * mean(held, retain_targets, batch)
