"""RMU (Li et al. 2024): push what a model thinks of the topic to one random direction, and hold the rest where it was.

``B`` rows, ``T`` tokens a row, ``D`` residual dimensions.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import FORGET_LABEL, Batch, Batches
from routed_rl.lm.models import blocks, mlp
from routed_rl.unlearning.streams import outputs


class ForgetAndRetain:
    """Batches of as many rows to forget, which are labelled so, as rows to retain, which are not."""

    def __init__(self, forget: Batches, retain: Batches) -> None:
        self._forget, self._retain = forget, retain

    def batch(self, step: int) -> Batch:
        """The batch of a step, 0 or later."""
        forget, retain = self._forget.batch(step), self._retain.batch(step)
        labels = torch.cat([torch.full_like(forget.labels, FORGET_LABEL), torch.full_like(retain.labels, -1)])
        return Batch(torch.cat([forget.tokens, retain.tokens]), labels, torch.cat([forget.scored, retain.scored]))


class RmuObjective:
    """``|h(x_forget) - c u|² + a |h(x_retain) - h_frozen(x_retain)|²``, means over dimensions, sums over the positions
    of targets: ``h`` is the residual stream after some blocks, ``u`` one random unit vector, fixed.

    From now on only the projections out of the MLPs of these blocks are trained. (The public code of gradient routing
    reads the stream a block too early, so that the last of them learns nothing, and draws ``u`` anew in each step.)

    Args:
        model: a model that knows what is to be forgotten; a frozen copy is kept.
        depth: how many blocks are before ``h``.
        norm: ``c``, the length of what is aimed at (gradient routing, section C: 100).
        retain_weight: ``a`` (there: 200).

    Raises:
        ValueError: for more blocks than the model has, or as :func:`~routed_rl.lm.models.mlp`.
    """

    def __init__(
        self,
        model: nn.Module,
        depth: int,
        norm: float,
        retain_weight: float,
        seed: int,
        projections: str | None = None,
    ) -> None:
        names = blocks(model)
        if not 1 <= depth <= len(names):
            raise ValueError(f"depth must be within 1 … {len(names)} blocks, got {depth}")
        learning = [mlp(model, layer, projections).consumer for layer in range(depth)]
        self._block, self._retain_weight = names[depth - 1], retain_weight
        self._frozen = copy.deepcopy(model).requires_grad_(False).eval()
        width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        direction = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        self._aim = norm * direction / direction.norm()
        model.requires_grad_(False)
        for name in learning:
            model.get_submodule(name).requires_grad_(True)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        stream = self._stream(model, batch)
        with torch.no_grad():
            frozen = self._stream(self._frozen.to(stream.device), batch)
        to_aim = (stream - self._aim.to(stream)).square().mean(dim=-1)
        to_frozen = (stream - frozen).square().mean(dim=-1)
        forget = batch.labels == FORGET_LABEL
        return torch.where(forget, to_aim, self._retain_weight * to_frozen)[:, :-1][batch.scored].sum()

    def _stream(self, model: nn.Module, batch: Batch) -> Tensor:
        """``(B, T, D)``: the residual stream after the block."""
        with outputs(getattr(model, "module", model).get_submodule(self._block)) as seen:
            model(input_ids=batch.tokens, use_cache=False)
        return seen[0]
