"""Ablate, remove or add units of a hidden layer. What the units have learned goes with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from routed_rl.routing.layers import CONVOLUTIONS, At, is_linear, size_name, weight_axis
from routed_rl.routing.site import Site, check_units, find_module
from routed_rl.routing.taps import silence_units

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Hidden:
    """A layer of hidden units, given by the names of the modules before and after it.

    Attributes:
        producers: every module with an output per unit: the linear or convolution layers that compute the units (both,
            for a gated layer), and batch norms between producers and consumer.
        consumer: the linear or convolution layer that reads the units.
        parts: outputs of each producer per unit. 2 for a fused gate and up projection, whose first half of outputs is
            the gates of all units, and whose second half is their values.
    """

    producers: tuple[str, ...]
    consumer: str
    parts: int = 1

    def sides(self) -> list[tuple[str, At]]:
        """Return each module's name, with ``"output"`` or ``"input"``: the side on which it has the units."""
        return [*((name, "output") for name in self.producers), (self.consumer, "input")]

    def width(self, model: nn.Module) -> int:
        """Return the number of units.

        Raises:
            ValueError: for an unknown module, a kind of module that cannot be resized, or widths that differ.
        """
        widths = [(name, _width(find_module(model, name), name, at)) for name, at in self.sides()]
        units = widths[-1][1]
        if not self.producers or any(width != self.parts * units for _, width in widths[:-1]):
            raise ValueError(
                f"hidden units need at least one producer, and the same width in all modules"
                f"{f' (times {self.parts} in producers)' if self.parts > 1 else ''}, got {widths}"
            )
        return units

    def outputs(self, units: slice, width: int) -> slice | list[int]:
        """Return which outputs of a producer belong to units, given the number of all units."""
        if self.parts == 1:
            return units
        return [part * width + unit for part in range(self.parts) for unit in range(width)[units]]


def ablate(model: nn.Module, hidden: Hidden, units: slice | Sequence[int]) -> RemovableHandle:
    """Set the activations of hidden units to 0, until ``remove()`` is called on the returned handle.

    The model's outputs equal those after :func:`remove_units`, up to rounding. A deep copy of the model stays ablated:
    the handle is that of the original.

    Raises:
        ValueError: as :meth:`Hidden.width`, or for units out of range.
    """
    chosen = _chosen(model, hidden, units)
    consumer = find_module(model, hidden.consumer)
    dim = 1 if isinstance(consumer, CONVOLUTIONS) else -1

    def silence(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        return (silence_units(x, dim, [chosen], [x.new_zeros(())]), *args[1:])

    return consumer.register_forward_pre_hook(silence)


@torch.no_grad()
def remove_units(model: nn.Module, hidden: Hidden, units: slice | Sequence[int]) -> None:
    """Remove hidden units from the layers that produce and read them; the layers become smaller.

    Their parameters become new objects, so create the optimizer afterwards.

    Raises:
        ValueError: as :func:`ablate`, or if no unit would remain.
    """
    gone = set(_chosen(model, hidden, units))
    kept = [unit for unit in range(hidden.width(model)) if unit not in gone]
    if not kept:
        raise ValueError(f"cannot remove all {len(gone)} units of {hidden.consumer!r}: keep at least one")
    for name, at in hidden.sides():
        _resize(model.get_submodule(name), at, hidden.parts, partial(_select, index=torch.tensor(kept)))


@torch.no_grad()
def add_units(model: nn.Module, hidden: Hidden, n: int, generator: torch.Generator | None = None) -> slice:
    """Add ``n`` hidden units after the existing ones; return their indices as a slice.

    Incoming weights start at random, as in a new torch layer. Outgoing weights start at 0, so the model's outputs
    stay the same (up to rounding) until the new units have learned. :func:`remove_units` restores the old shapes, and
    the old values of parameters that were not trained meanwhile. Parameters become new objects, so create the
    optimizer afterwards.

    Raises:
        ValueError: as :meth:`Hidden.width`, or for fewer than one unit.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"at least one unit must be added, got {n!r}")
    width = hidden.width(model)
    for name, at in hidden.sides():
        module = model.get_submodule(name)

        def extended(name: str, tensor: Tensor, axis: int, at: At = at, module: nn.Module = module) -> Tensor:
            shape = (*tensor.shape[:axis], n, *tensor.shape[axis + 1 :])
            new = torch.zeros(shape, dtype=tensor.dtype)
            if isinstance(module, NORMS):
                new.fill_(1.0 if name in ("weight", "running_var") else 0.0)
            elif at == "output":
                # Torch draws weights and biases of these layers from ±1 / sqrt(number of inputs of a unit).
                weight: Tensor = module.weight  # type: ignore[assignment]
                bound = (weight.numel() // weight.shape[weight_axis(module, at)]) ** -0.5
                new.uniform_(-bound, bound, generator=generator)
            return torch.cat([tensor, new.to(tensor.device)], dim=axis)

        _resize(module, at, hidden.parts, extended)
    return slice(width, width + n)


def _chosen(model: nn.Module, hidden: Hidden, units: slice | Sequence[int]) -> list[int]:
    width = hidden.width(model)
    check_units(hidden.consumer, Site("input", units), width)
    return list(range(width)[units]) if isinstance(units, slice) else list(units)


def _select(name: str, tensor: Tensor, axis: int, *, index: Tensor) -> Tensor:
    return tensor.index_select(axis, index.to(tensor.device))


def _size_name(module: nn.Module, at: At) -> str | None:
    """Return the name of the attribute that holds the number of units; None if the module cannot be resized."""
    if isinstance(module, NORMS):
        return "num_features" if at == "output" else None
    plain = isinstance(module, CONVOLUTIONS) and module.groups == 1 and not module.transposed
    return size_name(module, at) if plain or is_linear(module) else None


def _width(module: nn.Module, name: str, at: At) -> int:
    size = _size_name(module, at)
    if size is None:
        known = "a Linear or a convolution without groups" + (", or a batch norm" if at == "output" else "")
        got = type(module).__name__ if any(module.children()) else module
        raise ValueError(f"{name!r} must be {known}, got {got}")
    width: int = getattr(module, size)
    return width


def _resize(module: nn.Module, at: At, parts: int, change: Callable[[str, Tensor, int], Tensor]) -> None:
    """Replace every tensor of a module that has entries per unit, and update the module's size.

    ``change`` gets a tensor's name, the tensor, and the axis that indexes the units. At an output it gets a tensor of
    several parts with its units' axis split in two, ``(parts, units)``.
    """
    width, parts = 0, parts if at == "output" else 1
    for name in ["weight"] if at == "input" else ["weight", "bias", "running_mean", "running_var"]:
        tensor = getattr(module, name, None)
        if tensor is None:
            continue
        axis = weight_axis(module, at) if name == "weight" else 0
        if parts == 1:
            changed = change(name, tensor.detach(), axis)
        else:
            changed = change(name, tensor.detach().unflatten(axis, (parts, -1)), axis + 1).flatten(axis, axis + 1)
        width = changed.shape[axis]
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(changed, requires_grad=tensor.requires_grad))
        else:
            setattr(module, name, changed)
    setattr(module, _size_name(module, at), width)  # type: ignore[arg-type]
