"""What a router puts into a network: gradients of some units, or of a layer's parameters, are weighted; the forward
pass is as it was.

A part of a tensor is given by ``units`` of a dimension (None for all) and weights of its leading dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Units = slice | Sequence[int] | None
Parts = tuple[Sequence[Units], Sequence[Tensor]]
"""Units, and the weights of each."""


def weigh(x: Tensor, dim: int, units: Sequence[Units], weights: Sequence[Tensor]) -> Tensor:
    """``x`` with each part multiplied by its weights; 0 gives 0, also for what is infinite.

    Args:
        x: any tensor.
        dim: the dimension of the units.
        units: of each part; parts may overlap.
        weights: of each part, of the leading dimensions of ``x`` without ``dim``.
    """
    # On a CPU memory costs more than arithmetic: what will be written as a whole is not copied first, and to ask
    # whether there is a 0 costs nothing; compilers see to the first themselves, and a device would be waited for.
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
    """Whether parts are slices in which every unit is once."""
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
    """``x`` unchanged, with the gradient that flows back weighted as :func:`weigh` does."""
    routed: Tensor = _RouteUnits.apply(x, dim, units, *weights)
    return routed


def silence_units(x: Tensor, dim: int, units: Sequence[Units], weights: Sequence[Tensor]) -> Tensor:
    """``x`` with 0 where a part's weight is 0."""
    return weigh(x, dim, units, [(weight != 0).to(x.dtype) for weight in weights])


class _LinearTap(torch.autograd.Function):
    """The identity on a linear layer's output, whose backward pass gives the layer's parameters their gradients."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Any, columns: Any, *weights: Tensor
    ) -> Tensor:
        ctx.rows, ctx.columns, ctx.dtypes = rows, columns, (weight.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(x, *weights)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        n = len(ctx.rows)
        outputs = weigh(grad, -1, ctx.rows, weights[:n]) if n else grad
        inputs = weigh(x, -1, ctx.columns, weights[n:]) if ctx.columns else x
        outputs = outputs.reshape(-1, outputs.shape[-1])
        inputs = inputs.reshape(-1, inputs.shape[-1]).to(outputs.dtype)
        of_weight = (outputs.mT @ inputs).to(ctx.dtypes[0]) if ctx.needs_input_grad[2] else None
        of_bias = outputs.sum(0).to(ctx.dtypes[1]) if ctx.needs_input_grad[3] else None
        return grad, None, of_weight, of_bias, None, None, *(None for _ in weights)


def linear_tap(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Parts, columns: Parts) -> Tensor:
    """:func:`torch.nn.functional.linear`, in which ``x`` gets its gradient as usual, and the parameters weighted ones:
    the sum over examples and positions of ``(row weights * grad)ᵀ (column weights * x)``, exactly what each alone gives
    times its weight."""
    y = F.linear(x, weight.detach(), None if bias is None else bias.detach())
    tapped: Tensor = _LinearTap.apply(y, x.detach(), weight, bias, rows[0], columns[0], *rows[1], *columns[1])
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
    """:func:`torch.nn.functional.embedding`, in which each occurrence's gradient is weighted."""
    embedded: Tensor = _EmbeddingTap.apply(weight, ids, padding_idx, units, *weights)
    return embedded
