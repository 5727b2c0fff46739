"""Kinds of layers: how many units they have, and where in their weights each unit's are."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

At = Literal["input", "output"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: torch's, or GPT-2's."""
    return isinstance(module, nn.Linear) or _is_gpt2s(module)


def size_name(module: nn.Module, at: At) -> str | None:
    """The attribute that says how many units there are at a layer's input or output; None for other modules."""
    if _is_gpt2s(module):
        return {"input": "nx", "output": "nf"}[at]
    names = {"input": ("in_features", "in_channels"), "output": ("out_features", "out_channels", "embedding_dim")}[at]
    return next((name for name in names if hasattr(module, name)), None)


def weight_axis(module: nn.Module, at: At) -> int:
    """The axis of a layer's weight along which the units at its input or output are: weights are ``(out, in, …)``, but
    ``(in, out)`` in GPT-2's linear layers and in embeddings, whose inputs are tokens."""
    inputs_first = _is_gpt2s(module) or isinstance(module, nn.Embedding)
    return int((at == "output") == inputs_first)


def linear_weight(module: nn.Module) -> Tensor:
    """The weight of a linear layer as ``(out, in)``, itself or a view of it."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.mT if weight_axis(module, "output") else weight


def _is_gpt2s(module: nn.Module) -> bool:
    # Told by its looks, because transformers, which has it, is not needed here.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")
