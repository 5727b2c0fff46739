"""The one primitive everything else is built from: identity forward, weighted backward."""

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
        # Under autocast the gradient may be narrower than the weight; it must keep its own type.
        weight = weight.to(grad.dtype)
        # 0 blocks whatever comes, also an infinite gradient. In place: on a CPU, memory costs more than arithmetic.
        return (grad * weight).masked_fill_(weight == 0, 0.0), None


def route_gradient(x: Tensor, weight: Tensor | float) -> Tensor:
    """Return ``x`` unchanged, with the gradient that flows back into it multiplied by ``weight``.

    The derivative of ``m * x + (1 - m) * stop_gradient(x)`` without its round-off (Cloud et al. 2024,
    section 3): 0 blocks, a fraction damps, more than 1 amplifies, a negative weight reverses. It
    masks everything that is learned *through* ``x``; what is downstream of ``x`` learns as usual.
    No gradient flows into ``weight``. Like every view, the result does not bear in-place operations.

    Args:
        x: any tensor, ``(B, …)``.
        weight: a number, or a real tensor whose dimensions match the *leading* dimensions of ``x``
            (equal or 1); it is broadcast over the trailing ones. ``(B,)`` weighs samples, ``(B, T)``
            positions, ``x.shape`` single entries.

    Raises:
        ValueError: if ``weight`` has more dimensions than ``x`` or one that does not match.
    """
    if not isinstance(weight, Tensor):
        weight = torch.tensor(weight, dtype=x.dtype.to_real() if x.is_floating_point() or x.is_complex() else None)
    weight = weight.to(x.device)
    if weight.ndim > x.ndim or any(w not in (1, n) for w, n in zip(weight.shape, x.shape[: weight.ndim], strict=True)):
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} does not match the leading dimensions of x, "
            f"whose shape is {tuple(x.shape)}"
        )
    if weight.is_complex():
        raise ValueError(f"weight must be real, got dtype {weight.dtype}")
    expanded = weight.detach().reshape(weight.shape + (1,) * (x.ndim - weight.ndim))
    routed: Tensor = _RouteGradient.apply(x, expanded)
    return routed
