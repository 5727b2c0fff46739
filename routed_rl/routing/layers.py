"""What routing must know of each kind of layer: its number of units, and the weight axis that the units index."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

At = Literal["input", "output", "bias"]
"""Where a site is at a module. Its bias has the units of its output."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer: ``nn.Linear``, or GPT-2's ``Conv1D`` from transformers."""
    return isinstance(module, nn.Linear) or _is_gpt2s(module)


def size_name(module: nn.Module, at: At) -> str | None:
    """Return the name of the attribute that holds the number of input or output units; None for other modules."""
    if _is_gpt2s(module):
        return "nx" if at == "input" else "nf"
    outputs = ("out_features", "out_channels", "embedding_dim")
    names = ("in_features", "in_channels") if at == "input" else outputs
    return next((name for name in names if hasattr(module, name)), None)


def weight_axis(module: nn.Module, at: At) -> int:
    """Return the axis of a layer's weight that indexes the input or output units.

    Weights are ``(out, in, …)``. They are ``(in, out)`` in GPT-2's linear layers and in embeddings (inputs: tokens).
    """
    inputs_first = _is_gpt2s(module) or isinstance(module, nn.Embedding)
    return int((at == "output") == inputs_first)


def linear_weight(module: nn.Module) -> Tensor:
    """Return the weight of a linear layer as ``(out, in)``: the parameter itself, or a transposed view."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.mT if weight_axis(module, "output") else weight


def _is_gpt2s(module: nn.Module) -> bool:
    # Recognized by name and attributes: this package does not import transformers, which defines the class.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")
