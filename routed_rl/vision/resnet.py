"""Classifiers with a partitioned code: ResNet-34 for 32×32 images (Cloud et al. 2024, section B.1), and a small one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from routed_rl.routing import RouteTable
from routed_rl.vision.autoencoder import mlp
from routed_rl.vision.partition import PartitionedNetwork

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Blocks and channels of ResNet-34's stages; all but the first halve the resolution."""
BLOCKS = sum(blocks for blocks, _ in STAGES)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, from ``(B, before, H, W)`` to ``(B, after, H/stride, W/stride)``."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else _projection(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.body(x) + self.shortcut(x)
        return total.relu()


def partitioned_resnet34(
    classes: int, routes: RouteTable, *, split: int = 14, width: float = 1.0
) -> PartitionedNetwork:
    """ResNet-34 on ``(B, 3, 32, 32)``, divided after a block; the outputs are logits ``(B, classes)``.

    A 1×1 convolution without bias ends the encoder and another starts the decoder and each certificate, so that no
    residual path crosses the code.

    Args:
        classes: that decoder and certificates tell apart.
        routes: group of classes → weight of each half.
        split: how many of the 16 blocks belong to the encoder; the paper's script: 14, so that two are left.
        width: factor on all channel counts.

    Raises:
        ValueError: if ``split`` leaves the encoder or the heads without a block, or the width no even number of
            channels.
    """
    if not 1 <= split < BLOCKS:
        raise ValueError(f"split must leave blocks on both sides, 1 … {BLOCKS - 1}, got {split}")
    plan = [
        (round(channels * width), 2 if block == 0 and stage > 0 else 1)
        for stage, (blocks, channels) in enumerate(STAGES)
        for block in range(blocks)
    ]
    stem, code = plan[0][0], plan[split - 1][0]
    if min(stem, code) < 2 or code % 2:
        raise ValueError(f"width {width} gives a code of {code} channels, which have no two halves")
    encoder = nn.Sequential(
        nn.Conv2d(3, stem, 3, padding=1, bias=False),
        nn.BatchNorm2d(stem),
        nn.ReLU(),
        *_blocks(stem, plan[:split]),
        nn.Conv2d(code, code, 1, bias=False),
    )

    def head(channels: int) -> nn.Module:
        last = plan[-1][0]
        return nn.Sequential(
            nn.Conv2d(channels, code, 1, bias=False),
            *_blocks(code, plan[split:]),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last, classes),
        )

    return PartitionedNetwork(encoder, head(code), (head(code // 2), head(code // 2)), routes)


def partitioned_classifier(
    pixels: int, hidden: Sequence[int], code: int, classes: int, routes: RouteTable
) -> PartitionedNetwork:
    """A small classifier of flat images ``(B, pixels)``: batch normalisation before each ReLU, and a linear code.

    Args:
        pixels: of an image.
        hidden: widths of the encoder's hidden layers, of which the last is that of the heads' hidden layer too.
        code: channels of the code, an even number.
        classes: that decoder and certificates tell apart; the outputs are logits ``(B, classes)``.
        routes: group of classes → weight of each half.
    """
    if code % 2:
        raise ValueError(f"a code of two halves must have an even number of channels, got {code}")

    def head(channels: int) -> nn.Module:
        return mlp(channels, hidden[-1], classes, norm=True)

    encoder = mlp(pixels, *hidden, code, bias=False, norm=True)
    return PartitionedNetwork(encoder, head(code), (head(code // 2), head(code // 2)), routes)


def _blocks(before: int, plan: Sequence[tuple[int, int]]) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for channels, stride in plan:
        blocks.append(BasicBlock(before, channels, stride))
        before = channels
    return blocks


def _projection(before: int, after: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
