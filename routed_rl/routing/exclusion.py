"""Exact exclusion: an optimizer step leaves chosen parameters unchanged, to the bit.

A zero gradient is not enough: momentum from earlier steps and decoupled weight decay still move the parameter.
Every torch optimizer skips a parameter whose gradient is ``None``, so whole parameters are excluded that way.
Torch cannot skip single entries of a parameter. Those entries, and their optimizer state, are restored after the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer


@contextmanager
def excluded(
    optimizer: Optimizer,
    parameters: Iterable[Tensor] = (),
    entries: Mapping[Tensor, Tensor] | None = None,
) -> Iterator[None]:
    """Within the block, ``optimizer.step()`` changes neither the excluded parameters nor their optimizer state.

    This holds with weight decay, momentum and accumulated gradients, and for the for-loop, foreach and fused
    implementations. Clip gradients inside the block: then excluded gradients do not count in the norm.

    Args:
        optimizer: any ``torch.optim`` optimizer with per-parameter state (all but LBFGS).
        parameters: parameters to exclude whole. Their gradients are ``None`` within the block and restored after it.
            (Torch's fused SGD with momentum needs a gradient of every parameter in its first step.)
        entries: parameter → boolean mask of the parameter's shape, true at the entries to exclude. All entries of
            a parameter share the optimizer's scalar step count, so the step count still advances.

    Raises:
        ValueError: if a tensor is not one of the optimizer's parameters, or a mask does not fit.
    """
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    whole = list(parameters)
    masks = dict(entries or {})
    for tensor in (*whole, *masks):
        if id(tensor) not in owned:
            raise ValueError(
                f"cannot exclude a tensor of shape {tuple(tensor.shape)}: it is not a parameter of the optimizer"
            )
    for parameter, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != parameter.shape:
            raise ValueError(
                f"the mask of a parameter of shape {tuple(parameter.shape)} must be boolean and of that shape, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )

    set_aside = [(parameter, parameter.grad) for parameter in whole]
    for parameter in whole:
        parameter.grad = None
    kept = []
    for parameter, mask in masks.items():
        if parameter.grad is not None:
            parameter.grad.masked_fill_(mask, 0.0)
        kept.append((parameter, mask, parameter.detach()[mask].clone(), _entry_state(optimizer, parameter, mask)))
    try:
        yield
    finally:
        for parameter, gradient in set_aside:
            parameter.grad = gradient
        with torch.no_grad():
            for parameter, mask, values, before in kept:
                parameter[mask] = values
                for name, state in optimizer.state[parameter].items():
                    if _is_entrywise(state, parameter):
                        # The step has just created this state: before the step it was zero.
                        state[mask] = before.get(name, torch.zeros((), dtype=state.dtype, device=state.device))


def _is_entrywise(state: object, parameter: Tensor) -> bool:
    return isinstance(state, Tensor) and state.shape == parameter.shape and state.ndim > 0


def _entry_state(optimizer: Optimizer, parameter: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {
        name: state[mask].clone()
        for name, state in optimizer.state.get(parameter, {}).items()
        if _is_entrywise(state, parameter)
    }
