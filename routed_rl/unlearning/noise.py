"""Noise: shrink and perturb a model, to damage what was suppressed together with all else (UNDO, Lee et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from routed_rl.runs import derive_seed

Initialisation = Literal["xavier", "model"]


def matrices(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is not a vector. As ``touch``, this leaves norms and biases unchanged."""
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
    """Set ``θ ← (1 - α) θ + α β N``, in place, also for frozen parameters (Ash & Adams 2020; UNDO).

    ``N`` is one of

    - ``"xavier"`` (UNDO's code): for a matrix or embedding, uniform in ``±sqrt(6 / (rows + columns))``; for a vector 0.
      The weights of several experts, ``(E, rows, columns)``, are ``E`` matrices.
      Biases and the gains of norms only shrink. Gemma's gains, which are added to 1, shrink towards doing nothing,
      other gains towards silence. Use ``touch=matrices`` to leave them alone.
    - ``"model"``: a new model of the same class and configuration, vectors too; ``α = β = 1`` gives that model.

    With ``α = 0`` nothing changes. With ``α = 1`` nothing is left of the weights that are touched. The noise of one
    parameter does not depend on which others are touched, or on the device. A matrix with two names, such as a tied
    embedding, counts once, under its first name.

    Args:
        model: whole, before it is distributed.
        alpha: share of the noise, 0 … 1.
        beta: scale of the noise, 0 or more (UNDO: 0.1; 0 only shrinks).
        seed: fixes the noise.
        initialisation: which ``N``.
        touch: whether to change a parameter, given its name and the parameter.
        mask: for a parameter's name, a tensor of its shape with numbers within 0 … 1, which multiply ``α`` entry by
            entry. Parameters without a mask are not touched. None: all are touched, with the same ``α``.

    Raises:
        ValueError: for numbers out of range or a mask that does not fit. With ``"xavier"`` also for a tensor that is
            neither matrix nor vector, with ``"model"`` for a model that its configuration does not describe.
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
        # 0 + -0 is not -0, so entries with a share of 0 are not computed but kept.
        parameter.copy_(torch.where(torch.as_tensor(share, device=parameter.device) > 0, changed, parameter))


def _xavier(seed: int, touched: Mapping[str, Tensor]) -> dict[str, Tensor]:
    noise = {}
    for name, parameter in touched.items():
        if parameter.dim() > 3:
            raise ValueError(
                f"{name!r} of shape {tuple(parameter.shape)} is neither a matrix nor a vector: leave it out by touch, "
                "or set initialisation='model'"
            )
        if parameter.dim() > 1:
            generator = torch.Generator().manual_seed(derive_seed(seed, name))
            bound = math.sqrt(6 / sum(parameter.shape[-2:]))
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
                f"{name!r} of shape {tuple(parameter.shape)} does not match the model's configuration: remove its new "
                "units first"
            )
    return new


def _check_mask(name: str, mask: Tensor, parameters: Mapping[str, Tensor]) -> None:
    if name not in parameters:
        raise ValueError(f"the mask is for {name!r}, which is not a parameter, or is the second name of one")
    if mask.shape != parameters[name].shape:
        shape = tuple(parameters[name].shape)
        raise ValueError(f"the mask for {name!r} has the shape {tuple(mask.shape)}, the parameter {shape}")
    low, high = (float(end) for end in torch.aminmax(mask.float()))
    if not 0 <= low <= high <= 1:
        raise ValueError(f"a mask's numbers must be within 0 … 1, those for {name!r} are within {low} … {high}")


@torch.no_grad()
def most_changed(before: nn.Module, after: nn.Module, share: float) -> dict[str, Tensor]:
    """Return a mask for :func:`shrink_and_perturb`: in each parameter, the share of entries that changed most.

    Entries that did not change are never in the mask. For a model and its suppressed copy, the mask localises the
    noise. (The idea is that of Targeted-UNDO, an independent re-implementation.)

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
