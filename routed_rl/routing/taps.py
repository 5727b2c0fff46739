"""The functions that a router puts into a network to weight gradients of units or of a layer's parameters.

The forward pass stays the same, except in :func:`silence_units`. A *part* of a tensor is some ``units`` of one
dimension (None for all) together with their weights, which match the tensor's leading dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Units = slice | Sequence[int] | None
Parts = tuple[Sequence[Units], Sequence[Tensor]]
"""For each part, its units; and for each part, its weights."""


def weigh(x: Tensor, dim: int, units: Sequence[Units], weights: Sequence[Tensor]) -> Tensor:
    """Return ``x`` with each part multiplied by its weights; weight 0 gives 0, even for an infinite entry.

    Args:
        x: any tensor.
        dim: the dimension that indexes the units.
        units: the units of each part. Parts may overlap.
        weights: the weights of each part. Their shape is a leading part of the shape of ``x`` without ``dim``.
    """
    # On a CPU, memory costs more than arithmetic. So x is not copied if the parts overwrite all of it, and zeros are
    # filled in only if a weight is 0. A compiler avoids the copy itself. On a GPU, the test for zeros would be a wait.
    eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
    fresh = eager and not x.requires_grad and _is_partition(units, x.shape[dim])
    out = torch.empty_like(x) if fresh else x.clone()
    source, last = x.movedim(dim, -1), out.movedim(dim, -1)
    for chosen, weight in zip(units, weights, strict=True):
        factor = weight.to(x.dtype).reshape(weight.shape + (1,) * (x.ndim - weight.ndim))
        blocks = not eager or bool((factor == 0).any())
        if isinstance(chosen, slice) or chosen is None:
            part = slice(None) if chosen is None else chosen
            if fresh:
                torch.mul(source[..., part], factor, out=last[..., part])
            else:
                last[..., part].mul_(factor)
            if blocks:
                last[..., part].masked_fill_(factor == 0, 0.0)
        else:
            index = torch.as_tensor(list(chosen), device=x.device)
            last[..., index] = (last[..., index] * factor).masked_fill(factor == 0, 0.0)
    return out


def _is_partition(units: Sequence[Units], size: int) -> bool:
    """Return whether all parts are slices that together contain every unit exactly once."""
    if not all(isinstance(chosen, slice) for chosen in units):
        return False
    found = sorted(chosen.indices(size) for chosen in units if isinstance(chosen, slice))
    ends = [0, *(stop for _, stop, _ in found)]
    return ends[-1] == size and all(
        (start, step) == (end, 1) for (start, _, step), end in zip(found, ends, strict=False)
    )


class _RouteUnits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, units: Sequence[Units], *weights: Tensor) -> Tensor:
        ctx.dim, ctx.units = dim, units
        ctx.save_for_backward(*weights)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weights = ctx.saved_tensors
        return weigh(grad, ctx.dim, ctx.units, weights), None, None, *(None for _ in weights)


def route_units(x: Tensor, dim: int, units: Sequence[Units], weights: Sequence[Tensor]) -> Tensor:
    """Return ``x`` unchanged; the backward pass applies :func:`weigh` to its gradient."""
    routed: Tensor = _RouteUnits.apply(x, dim, units, *weights)
    return routed


def silence_units(x: Tensor, dim: int, units: Sequence[Units], weights: Sequence[Tensor]) -> Tensor:
    """Return ``x`` with 0 wherever a part's weight is 0."""
    return weigh(x, dim, units, [(weight != 0).to(x.dtype) for weight in weights])


class _LinearTap(torch.autograd.Function):
    """The identity on a linear layer's output; its backward pass computes the gradients of the layer's parameters."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, units: Any, *weights: Tensor
    ) -> Tensor:
        ctx.units, ctx.dtypes = units, (weight.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(x, *weights)
        ctx.mark_dirty(y)  # so that y is returned itself and not a view: Falcon adds to it in place
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        rows, columns, entries = ctx.units
        n, m = len(rows), len(rows) + len(columns)
        outputs = weigh(grad, -1, rows, weights[:n]) if rows else grad
        inputs = weigh(x, -1, columns, weights[n:m]) if columns else x
        of_weight = of_bias = None
        if ctx.needs_input_grad[2]:
            flat = outputs.reshape(-1, outputs.shape[-1])
            of_weight = (flat.mT @ inputs.reshape(-1, inputs.shape[-1]).to(flat.dtype)).to(ctx.dtypes[0])
        if ctx.needs_input_grad[3]:
            biased = weigh(outputs, -1, entries, weights[m:]) if entries else outputs
            of_bias = biased.reshape(-1, biased.shape[-1]).sum(0).to(ctx.dtypes[1])
        return grad, None, of_weight, of_bias, None, *(None for _ in weights)


def linear_tap(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Parts, columns: Parts, entries: Parts) -> Tensor:
    """Return :func:`torch.nn.functional.linear`, with weighted gradients of ``weight`` and ``bias``.

    The gradient of ``weight`` is the sum over examples and positions of ``(row weights * grad)ᵀ (column weights * x)``.
    That of ``bias`` is the sum of ``entry weights * row weights * grad``. These equal the gradients of each example
    alone, times its weights. ``x`` gets its gradient as usual.
    """
    y = F.linear(x, weight.detach(), None if bias is None else bias.detach())
    units, weights = zip(rows, columns, entries, strict=True)
    tapped: Tensor = _LinearTap.apply(y, x.detach(), weight, bias, units, *(w for those in weights for w in those))
    return tapped


class _EmbeddingTap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_idx: int | None, units: Any, *weights: Tensor) -> Tensor:
        ctx.padding_idx, ctx.units, ctx.tokens = padding_idx, units, len(weight)
        ctx.save_for_backward(ids, *weights)
        return F.embedding(ids, weight, padding_idx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ids, *weights = ctx.saved_tensors
        grad = weigh(grad, -1, ctx.units, weights)
        padding = -1 if ctx.padding_idx is None else ctx.padding_idx
        of_weight = torch.ops.aten.embedding_dense_backward(grad, ids, ctx.tokens, padding, False)
        return of_weight, None, None, None, *(None for _ in weights)


def embedding_tap(
    ids: Tensor, weight: Tensor, padding_idx: int | None, units: Sequence[Units], weights: Sequence[Tensor]
) -> Tensor:
    """Return :func:`torch.nn.functional.embedding`, with a weighted gradient for each occurrence of a token."""
    embedded: Tensor = _EmbeddingTap.apply(weight, ids, padding_idx, units, *weights)
    return embedded
