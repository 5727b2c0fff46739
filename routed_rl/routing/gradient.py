"""``route_gradient``: the identity in the forward pass, a multiplication by the route weight in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RouteGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        # Under autocast the gradient's dtype may be narrower than the weight's; the gradient must keep its dtype.
        weight = weight.to(grad.dtype)
        # Weight 0 blocks an infinite gradient too. In place: on a CPU, memory costs more than arithmetic.
        return (grad * weight).masked_fill_(weight == 0, 0.0), None


def route_gradient(x: Tensor, weight: Tensor | float) -> Tensor:
    """Return ``x`` unchanged; the backward pass multiplies the gradient with respect to ``x`` by ``weight``.

    Value and derivative are those of ``m * x + (1 - m) * stop_gradient(x)`` (Cloud et al. 2024, section 3), without
    the round-off of that expression.
    Weight 0 blocks the gradient, a fraction damps it, more than 1 amplifies it, a negative weight reverses it.
    The weight applies to every parameter that gets its gradient *through* ``x``. Layers after ``x`` learn as usual.
    No gradient flows into ``weight``. The result is a view of ``x``: do not modify the result in place.

    Args:
        x: any tensor, ``(B, …)``.
        weight: a number, or a real tensor. The tensor's dimensions match the *leading* dimensions of ``x`` (each is
            equal or 1), and it is broadcast over the rest. ``(B,)`` weights samples, ``(B, T)`` positions, and
            ``x.shape`` single entries.

    Raises:
        ValueError: if ``weight`` is complex, has more dimensions than ``x``, or has a dimension that does not match.
    """
    if not isinstance(weight, Tensor):
        weight = torch.tensor(weight, dtype=x.dtype.to_real() if x.is_floating_point() or x.is_complex() else None)
    weight = weight.to(x.device)
    if weight.ndim > x.ndim or any(w not in (1, n) for w, n in zip(weight.shape, x.shape[: weight.ndim], strict=True)):
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} must match the leading dimensions of x, "
            f"which has shape {tuple(x.shape)}"
        )
    if weight.is_complex():
        raise ValueError(f"weight must be real, got dtype {weight.dtype}")
    expanded = weight.detach().reshape(weight.shape + (1,) * (x.ndim - weight.ndim))
    routed: Tensor = _RouteGradient.apply(x, expanded)
    return routed
