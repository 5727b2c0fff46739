"""Which residual streams a suppression method reads or changes, and which weights come before them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from torch import nn

from routed_rl.errors import UserError
from routed_rl.lm.structure import blocks


def blocks_at(model: nn.Module, depths: str | None, usual: Sequence[Fraction]) -> list[str]:
    """Return the names of the blocks whose outputs are the residual streams at these depths, in order.

    >>> blocks_at(model, "10,20", usual=())  # doctest: +SKIP
    ['model.layers.9', 'model.layers.19']

    Args:
        depths: numbers of blocks before each stream, separated by commas. None: ``usual``.
        usual: depths as shares of the model's blocks, rounded up.

    Raises:
        UserError: for text that is not a list of numbers, or a depth that the model does not have.
    """
    names = blocks(model)
    if depths is None:
        numbers = {math.ceil(share * len(names)) for share in usual}
    else:
        parts = depths.split(",")
        if not all(part.strip().isdecimal() for part in parts):
            raise UserError(f"depths must be numbers of blocks, such as 10,20, got {depths!r}")
        numbers = {int(part) for part in parts}
    if wrong := [number for number in sorted(numbers) if not 1 <= number <= len(names)]:
        raise UserError(f"depths must be within 1 … {len(names)} blocks, got {wrong[0]}")
    return [names[number - 1] for number in sorted(numbers)]
