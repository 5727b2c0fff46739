"""The autoencoder with a partitioned code (Cloud et al. 2024, sections 4.1 and B)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from routed_rl.routing import RouteTable
from routed_rl.vision.partition import PartitionedNetwork


def mlp(*sizes: int, bias: bool = True, hidden_bias: bool = True, norm: bool = False) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them.

    Args:
        sizes: of the input, every layer, and the output.
        bias: whether the last layer has one.
        hidden_bias: whether the others have one.
        norm: batch normalisation before every ReLU.
    """
    *hidden, last = itertools.pairwise(sizes)
    layers: list[nn.Module] = []
    for before, after in hidden:
        layers += [nn.Linear(before, after, bias=hidden_bias), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*last, bias=bias))


def partitioned_autoencoder(
    pixels: int, hidden: Sequence[int], code: int, routes: RouteTable, *, separate: bool = False
) -> PartitionedNetwork:
    """An autoencoder of flat images ``(B, pixels)``, with decoders and certificates that mirror the encoder.

    Args:
        pixels: of an image.
        hidden: widths of the encoder's hidden layers; the paper's: 2048, 512. Its last layer is linear without bias.
        code: channels of the code, an even number; the paper's: 32.
        routes: group of digits → weight of each half.
        separate: one decoder per group instead of one for all.

    Raises:
        ValueError: as for :class:`PartitionedNetwork`, and if ``code`` is odd.
    """
    if code % 2:
        raise ValueError(f"a code of two halves must have an even number of channels, got {code}")
    back = (*reversed(hidden), pixels)
    decoders = [mlp(code, *back) for _ in range(len(routes.labels) if separate else 1)]
    certificates = (mlp(code // 2, *back), mlp(code // 2, *back))
    return PartitionedNetwork(mlp(pixels, *hidden, code, bias=False), decoders, certificates, routes)


def absolute_errors(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Mean absolute pixel error per image, ``(B,)``, of images ``(B, pixels)``."""
    return (rebuilt - images).abs().mean(dim=1)


def squared_errors(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Mean squared pixel error per image, ``(B,)``, of images ``(B, pixels)``."""
    return (rebuilt - images).square().mean(dim=1)
