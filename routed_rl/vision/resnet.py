"""Classifiers with a partitioned code: ResNet-34 for 32×32 images (Cloud et al. 2024, section B.1) and a small one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from routed_rl.routing import RouteTable
from routed_rl.vision.autoencoder import mlp
from routed_rl.vision.partition import PartitionedNetwork

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
"""(number of blocks, channels) of ResNet-34's stages; all stages except the first halve the resolution."""
BLOCKS = sum(blocks for blocks, _ in STAGES)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: ``(B, before, H, W)`` → ``(B, after, H/stride, W/stride)``."""

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
    """Return a ResNet-34 for images ``(B, 3, 32, 32)``, split into encoder and heads; outputs are logits.

    The heads are the decoder and the two certificates; each returns ``(B, classes)``. The encoder ends with a 1×1
    convolution without bias, and each head starts with one. So no residual path crosses the code.

    Args:
        classes: number of classes.
        routes: group of classes → weight of each half.
        split: how many of the 16 blocks belong to the encoder. The paper's script uses 14: two are left for the heads.
        width: factor for all channel counts.

    Raises:
        ValueError: if ``split`` leaves no block for the encoder or for the heads, or ``width`` gives a code without
            two equal halves.
    """
    if not 1 <= split < BLOCKS:
        raise ValueError(f"split must be 1 to {BLOCKS - 1}, to leave blocks on both sides, got {split}")
    plan = [
        (round(channels * width), 2 if block == 0 and stage > 0 else 1)
        for stage, (blocks, channels) in enumerate(STAGES)
        for block in range(blocks)
    ]
    stem, code = plan[0][0], plan[split - 1][0]
    if min(stem, code) < 2 or code % 2:
        raise ValueError(
            f"width must give a code with an even number of channels, at least 2, got {width}: {code} channels"
        )
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
    """Return a small classifier of flat images ``(B, pixels)``; its outputs are logits ``(B, classes)``.

    It has batch normalization before each ReLU, and a linear code.

    Args:
        pixels: the number of pixels of an image.
        hidden: widths of the encoder's hidden layers. The hidden layer of each head has the last of these widths.
        code: number of channels of the code, even.
        classes: number of classes.
        routes: group of classes → weight of each half.

    Raises:
        ValueError: if ``code`` is odd, or for what :class:`PartitionedNetwork` rejects.
    """
    if code % 2:
        raise ValueError(f"code, the number of channels in two halves, must be even, got {code}")

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
