"""Noise: shrink and perturb a model, and what it has suppressed is damaged with all else (UNDO, Lee et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from routed_rl.runs import derive_seed

Initialisation = Literal["xavier", "model"]


def matrices(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is no vector: leaves norms and biases alone."""
    return parameter.dim() > 1


@torch.no_grad()
def shrink_and_perturb(
    model: nn.Module,
    alpha: float,
    beta: float,
    seed: int,
    initialisation: Initialisation = "xavier",
    touch: Callable[[str, Tensor], bool] = lambda name, parameter: True,
    mask: Mapping[str, Tensor] | None = None,
) -> None:
    """``θ ← (1 - α) θ + α β N`` in place, of frozen parameters too (Ash & Adams 2020; UNDO).

    ``N`` is either of

    - ``"xavier"`` (UNDO's code): of a matrix, embeddings too, uniform in ``±sqrt(6 / (rows + columns))``; of a vector
      0. So biases and the gains of norms are only shrunk, Gemma's, which are added to 1, towards doing nothing, others
      towards silence: :func:`matrices` leaves them alone.
    - ``"model"``: a new model of the same class and configuration, vectors too; ``α = β = 1`` is that model.

    With ``α = 0`` nothing changes, with ``α = 1`` nothing is left of the weights that are touched. What is drawn for
    one parameter does not depend on which others are touched, or on the device. A matrix with two names, as a tied
    embedding, is one, under its first name.

    Args:
        model: whole, before it is distributed.
        alpha: share of the noise, 0 … 1.
        beta: its scale, 0 or more (UNDO: 0.1; 0 shrinks only).
        touch: which parameters, of name and parameter.
        mask: by name, a parameter's own shape with a number within 0 … 1 for each entry, which multiplies ``α`` there;
            parameters without one are not touched. None: everything is, alike.

    Raises:
        ValueError: for numbers out of their ranges, a mask that does not fit, a tensor that is neither matrix nor
            vector for ``"xavier"``, and for ``"model"`` a model that its configuration does not describe.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be within 0 … 1, got {alpha}")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be 0 or more, got {beta}")
    parameters = dict(model.named_parameters())
    for name, wanted in (mask or {}).items():
        _check_mask(name, wanted, parameters)
    touched = {
        name: parameter
        for name, parameter in parameters.items()
        if touch(name, parameter) and (mask is None or name in mask)
    }
    noise = _of_new_model(model, seed, touched) if initialisation == "model" else _xavier(seed, touched)
    for name, parameter in touched.items():
        share = alpha if mask is None else alpha * mask[name].to(parameter)
        changed = (1 - share) * parameter + share * (beta * noise[name].to(parameter))
        # 0 + -0 is not -0: what is to stay is not computed.
        parameter.copy_(torch.where(torch.as_tensor(share, device=parameter.device) > 0, changed, parameter))


def _xavier(seed: int, touched: Mapping[str, Tensor]) -> dict[str, Tensor]:
    noise = {}
    for name, parameter in touched.items():
        if parameter.dim() > 2:
            raise ValueError(
                f"{name!r} of shape {tuple(parameter.shape)} is neither a matrix nor a vector: leave it out, or draw "
                "noise as the model does"
            )
        if parameter.dim() == 2:
            generator = torch.Generator().manual_seed(derive_seed(seed, name))
            bound = math.sqrt(6 / sum(parameter.shape))
            noise[name] = bound * (2 * torch.rand(parameter.shape, dtype=torch.float32, generator=generator) - 1)
        else:
            noise[name] = torch.zeros(parameter.shape)
    return noise


def _of_new_model(model: nn.Module, seed: int, touched: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        new = dict(type(model)(model.config).named_parameters())
    for name, parameter in touched.items():
        if name not in new or new[name].shape != parameter.shape:
            raise ValueError(
                f"{name!r} of shape {tuple(parameter.shape)} is not what the model's configuration says: cut out its "
                "new units first"
            )
    return new


def _check_mask(name: str, mask: Tensor, parameters: Mapping[str, Tensor]) -> None:
    if name not in parameters:
        raise ValueError(f"the mask is for {name!r}, which is no parameter of the model, or one under its second name")
    if mask.shape != parameters[name].shape:
        shape = tuple(parameters[name].shape)
        raise ValueError(f"the mask for {name!r} has the shape {tuple(mask.shape)}, the parameter {shape}")
    low, high = (float(end) for end in torch.aminmax(mask.float()))
    if not 0 <= low <= high <= 1:
        raise ValueError(f"a mask's numbers must be within 0 … 1, those for {name!r} are within {low} … {high}")


@torch.no_grad()
def most_changed(before: nn.Module, after: nn.Module, share: float) -> dict[str, Tensor]:
    """A mask for :func:`shrink_and_perturb`: of each parameter, the share of entries that have changed most, as by
    suppression; none that has not changed. (Localised noise; the idea is Targeted-UNDO's, an independent
    re-implementation.)

    Raises:
        ValueError: for a share that is not within 0 … 1, or models whose parameters are not the same.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be within 0 … 1, got {share}")
    old, new = (dict(model.named_parameters()) for model in (before, after))
    if {name: p.shape for name, p in old.items()} != {name: p.shape for name, p in new.items()}:
        raise ValueError("the models must have the same parameters: compare one with a copy of it that was trained")
    masks = {}
    for name, parameter in new.items():
        change = (parameter - old[name].to(parameter)).abs().flatten()
        largest = change.topk(round(share * change.numel())).indices
        mask = torch.zeros_like(change, dtype=torch.bool).index_fill_(0, largest, True)
        masks[name] = (mask & (change > 0)).view(parameter.shape)
    return masks
