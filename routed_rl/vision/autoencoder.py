"""The autoencoder with a partitioned code (Cloud et al. 2024, sections 4.1 and B)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from routed_rl.routing import RouteTable
from routed_rl.vision.partition import PartitionedNetwork


def mlp(*sizes: int, bias: bool = True, hidden_bias: bool = True, norm: bool = False) -> nn.Sequential:
    """Return linear layers of these sizes with ReLU between them.

    Args:
        sizes: the sizes of the input, of every hidden layer, and of the output.
        bias: whether the last layer has a bias.
        hidden_bias: whether the other layers have a bias.
        norm: whether there is batch normalization before every ReLU.
    """
    *hidden, last = itertools.pairwise(sizes)
    layers: list[nn.Module] = []
    for before, after in hidden:
        layers += [nn.Linear(before, after, bias=hidden_bias), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*last, bias=bias))


def partitioned_autoencoder(
    pixels: int, hidden: Sequence[int], code: int, routes: RouteTable, *, separate: bool = False
) -> PartitionedNetwork:
    """Return an autoencoder of flat images ``(B, pixels)``; decoders and certificates mirror the encoder's layers.

    The encoder's last layer is linear and has no bias.

    Args:
        pixels: the number of pixels of an image.
        hidden: widths of the encoder's hidden layers; the paper uses 2048, 512.
        code: number of channels of the code, even; the paper uses 32.
        routes: group of digits → weight of each half.
        separate: use one decoder per group, in place of one for all groups.

    Raises:
        ValueError: if ``code`` is odd, or for what :class:`PartitionedNetwork` rejects.
    """
    if code % 2:
        raise ValueError(f"code, the number of channels in two halves, must be even, got {code}")
    back = (*reversed(hidden), pixels)
    decoders = [mlp(code, *back) for _ in range(len(routes.labels) if separate else 1)]
    certificates = (mlp(code // 2, *back), mlp(code // 2, *back))
    return PartitionedNetwork(mlp(pixels, *hidden, code, bias=False), decoders, certificates, routes)


def absolute_errors(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Return the mean absolute pixel error of each image, ``(B,)``, for images ``(B, pixels)``."""
    return (rebuilt - images).abs().mean(dim=1)


def squared_errors(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Return the mean squared pixel error of each image, ``(B,)``, for images ``(B, pixels)``."""
    return (rebuilt - images).square().mean(dim=1)
