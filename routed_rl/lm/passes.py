"""What the passes of a training cost: rows that go through a model, with and without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from routed_rl.lm.structure import blocks

FORWARD_PASS = 1 / 3
"""Cost of a forward pass, in gradient steps. A gradient step adds a backward pass, which costs twice as much."""


@contextmanager
def counted(model: nn.Module) -> Iterator[list[float]]:
    """Count what runs through the blocks of a model and of its copies, within the context.

    Yields:
        A list, whose sum is the cost in rows of training: a row that passes all blocks counts 1 with gradients, and
        ``FORWARD_PASS`` without.
    """
    names = blocks(model)
    kind, share = type(model.get_submodule(names[0])), 1 / len(names)
    costs: list[float] = []

    def count(module: nn.Module, args: Any, output: Any) -> None:
        if type(module) is kind:
            rows = len(output if isinstance(output, Tensor) else output[0])
            costs.append(rows * share * (1.0 if torch.is_grad_enabled() else FORWARD_PASS))

    with register_module_forward_hook(count):
        yield costs
