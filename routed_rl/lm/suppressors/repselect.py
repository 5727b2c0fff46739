"""RepSelect (Sondej et al. 2026, arXiv 2606.17168): unlearn along directions that only the forget set uses.

``M x N`` is the shape of a weight matrix, ``S`` its gradient's singular values from the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import promoted, token_losses
from routed_rl.lm.processes import divided_as, undivided
from routed_rl.lm.structure import blocks, feed_forward
from routed_rl.lm.suppressors.suppressor import Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective

_TERM: ContextVar[Literal["both", "forget", "retain"]] = ContextVar("term", default="both")
"""The terms that the loss has now. A gradient transform needs the forget gradient alone."""


def collapse(gradient: Tensor, share: float) -> Tensor:
    """Return a gradient with its largest principal components collapsed (soft collapse on both sides).

    Each of the ``k`` largest singular values ``s`` becomes ``S_k² / s``. So the components that were largest become the
    smallest, and others stay. ``k`` is a share of the singular values that are not 0, rounded up.

    Args:
        gradient: ``(…, M, N)``. Matrices of more dimensions are collapsed one by one.
        share: of the components that are collapsed, from 0 to 1.

    Raises:
        FloatingPointError: for a gradient that is not finite.
    """
    try:
        left, values, right = torch.linalg.svd(promoted(gradient), full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise FloatingPointError("the gradient is no longer a finite number") from error
    size = max(gradient.shape[-2:]) * torch.finfo(values.dtype).eps
    counted = values > size * values[..., :1]
    count = torch.ceil(share * counted.sum(dim=-1, keepdim=True)).long()
    edge = values.gather(-1, (count - 1).clamp_min(0))
    places = torch.arange(values.shape[-1], device=values.device)
    wanted = torch.where(places < count, edge.square() / values, values)
    return ((left * torch.where(counted, wanted, 0.0).unsqueeze(-2)) @ right).to(gradient.dtype)


@dataclass(frozen=True)
class RepSelect(Suppressor):
    """``- CE_forget + a * CE_retain``, with the forget gradient collapsed by ``collapse`` before each step.

    Directions that explain most of the forget gradient are shared with other knowledge, the paper argues. A step along
    them harms the retain set, and fine-tuning soon undoes it. As in the authors' code, only the MLPs'
    weight matrices learn. In a mixture of experts these are all weights of the experts.

    These parts are ours: the retain term, whose gradient is not collapsed; a new collapse in each step, where the
    authors' code collapses one gradient of the whole forget set; ``k`` as a share; and a factor that gives the
    collapsed gradient the length that it had before, over all matrices. Their code also trains an adapter on the forget
    set first, which is left out here. AdamW scales each weight's step on its own, so a step is not exactly along the
    collapsed gradient. With low-rank adapters, the gradients of the adapters' matrices are collapsed.
    """

    retain_weight: float = 5.0
    """weight of the retain loss: a"""
    share: float = 0.2
    """share of a gradient's principal components that are collapsed, at most 1; with 0 it is GradDiff on the MLPs"""
    projections: str | None = None
    """names of the MLPs' modules, for a model whose MLPs are not found by structure, as for routed_rl.lm.mlp"""

    recipe = brief(steps=100, learning_rate=1e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share > 1:
            raise ValueError(f"share of RepSelect must be at most 1, got {self.share}")

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`. Each term's gradient is computed on its own."""
        return 2.0

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`. This freezes the weights that do not learn.

        Raises:
            ValueError: for MLPs that are not found, as :func:`~routed_rl.lm.mlp`.
        """
        learning: list[str] = []
        for layer in range(len(blocks(model))):
            found = feed_forward(model, layer, self.projections)
            learning += found.linear if set(found.last) <= set(found.linear) else found.last
        model.requires_grad_(False)
        for name in learning:
            for parameter in model.get_submodule(name).parameters():
                parameter.requires_grad_(parameter.ndim > 1)

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            losses = token_losses(trained, batch)
            terms = {
                "forget": -mean(losses, forget_targets, batch),
                "retain": self.retain_weight * mean(losses, retain_targets, batch),
            }
            return sum(terms.values()) if (term := _TERM.get()) == "both" else terms[term]

        return loss

    def gradient(self, model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """Compute the collapsed gradient of the forget term, add that of the retain term, and return the whole loss."""
        loss = _of("forget", compute)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        before = nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            if gradient.ndim > 1:
                gradient.copy_(divided_as(collapse(undivided(gradient), self.share), gradient))
        after = nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.mul_(before / after.clamp_min(torch.finfo(after.dtype).tiny))
        return loss + _of("retain", compute)


def _of(term: Literal["forget", "retain"], compute: Callable[[], Tensor]) -> Tensor:
    """Compute one term's gradient, and return its loss."""
    was = _TERM.set(term)
    try:
        return compute()
    finally:
        _TERM.reset(was)
