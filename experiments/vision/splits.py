"""The settings of the MNIST split (Cloud et al. 2024, section B, table 2), and the training of one model."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam

from routed_rl.experiments.vision.images import Images
from routed_rl.routing import RouteTable
from routed_rl.runs import check_seed
from routed_rl.vision import (
    HALVES,
    PartitionedNetwork,
    Penalties,
    RoutedVAE,
    absolute_errors,
    one_hot_routes,
    partition_loss,
    partitioned_autoencoder,
    seeded,
    squared_errors,
    train_epoch,
)

DIGITS = 10
CODE = 32
TRAVERSAL_STEPS = 8
PARTS = ("decoder", *HALVES)
CONSTANT = "constant"
"""Name of a part that answers every image with the same image: the median of each pixel over the training images."""
BOTH: tuple[int, ...] = (0, 1)
BOTTOM = (1,)
PENALTIES = Penalties()
WEAK = Penalties(l1=(1e-3, 1e-3), correlation=0.0)
NO_PENALTY = Penalties(l1=(0.0, 0.0), correlation=0.0)
TWO_SIDED = RouteTable({"top": {"bottom": 0}, "bottom": {"top": 0}}, HALVES)
ONE_SIDED = RouteTable({"top": {}, "bottom": {"top": 0}}, HALVES)
UNROUTED = RouteTable({"top": {}, "bottom": {}}, HALVES)


@dataclass(frozen=True)
class Setting:
    """A row of table 2."""

    title: str
    published: tuple[float, float]
    """published mean squared error of the bottom certificate on digits 0–4 and 5–9 of MNIST, 20 runs of 200 epochs"""
    routes: RouteTable = UNROUTED
    penalties: Penalties = PENALTIES
    separate: bool = False
    """whether each group of digits has its own decoder"""
    groups: tuple[int, ...] = BOTH
    """groups (0: top, 1: bottom) whose errors train encoder and decoder; the certificates learn from all images"""


SETTINGS: Mapping[str, Setting] = {
    "1": Setting("gradient routing", (0.32, 0.08), TWO_SIDED),
    "2": Setting("routing, separate decoders", (0.33, 0.07), TWO_SIDED, separate=True),
    "3": Setting("routing, no correlation penalty", (0.28, 0.11), TWO_SIDED, Penalties(correlation=0.0)),
    "4": Setting("routing, no regularisation", (0.32, 0.32), TWO_SIDED, NO_PENALTY),
    "5": Setting("routing, no regularisation, separate decoders", (0.09, 0.08), TWO_SIDED, NO_PENALTY, separate=True),
    "6": Setting("routing of the bottom digits only", (0.23, 0.13), ONE_SIDED, Penalties(l1=(3e-3, 2e-2))),
    "7": Setting("no routing, bottom digits only", (0.27, 0.11), penalties=WEAK, groups=BOTTOM),
    "8": Setting("no routing or regularisation, bottom digits only", (0.08, 0.08), penalties=NO_PENALTY, groups=BOTTOM),
    "9": Setting("no routing", (0.13, 0.13)),
    "10": Setting("no routing or regularisation", (0.08, 0.09), penalties=NO_PENALTY),
}
"""The rows of table 2. By default the L1 penalty is 3e-3 on both halves, and the correlation penalty is 0.1."""
TEN_WAY = "ten-way"
"""The variational autoencoder with one latent per digit, from the companion post of the authors."""
PUBLISHED_ACCURACY = 0.9258
"""Published accuracy of its largest latent as a classifier of MNIST, from the same post."""


@dataclass(frozen=True)
class Recipe:
    """Networks and training of the models of a study, the same for all settings."""

    hidden: tuple[int, int]
    """widths of the two hidden layers of the encoder"""
    epochs: int
    batch_size: int
    kl: float
    """weight of the KL divergence in the ten-way variant"""
    learning_rate: float = 1e-3
    decay: bool = False
    """whether the learning rate falls linearly to 0, epoch by epoch"""
    weight_decay: float = 5e-5


RECIPES: Mapping[tuple[str, str], Recipe] = {
    ("digits", "quick"): Recipe(hidden=(128, 64), epochs=150, batch_size=256, kl=0.1),
    ("mnist", "quick"): Recipe(hidden=(256, 128), epochs=13, batch_size=32, kl=1.0, decay=True),
    ("mnist", "paper"): Recipe(hidden=(2048, 512), epochs=200, batch_size=2048, kl=1.0),
}
"""Recipes by data and name. On MNIST ``quick`` takes 2 to 3 CPU minutes per model. It has narrow networks and many
small steps, because the two halves separate with the number of steps."""


def groups_of(partition: str, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The half to which each image is routed, ``(N,)``: 0 (top) or 1 (bottom).

    Args:
        partition: the digits of the top half, as in ``0,1,2,3,4``; or ``hash``, a meaningless checksum of the pixels.
        images: uint8, ``(N, …)``.
        labels: digits, ``(N,)``.

    Raises:
        ValueError: unless the partition is ``hash`` or 1 to 9 distinct digits.
    """
    if partition == "hash":
        return np.array([zlib.crc32(image.tobytes()) % 2 for image in images], dtype=np.int64)
    words = partition.split(",")
    if not all(len(word) == 1 and word in "0123456789" for word in words) or len(set(words)) < len(words):
        raise ValueError(f"--partition must be distinct digits, as in 0,1,2,3,4, or hash, got {partition!r}")
    if len(words) == DIGITS:
        raise ValueError(f"--partition must leave at least one digit for the bottom half, got {partition!r}")
    return (~np.isin(labels, [int(word) for word in words])).astype(np.int64)


class Study:
    """Images as tensors on a device. Trains and evaluates models of these images.

    Raises:
        ValueError: for an impossible partition.
    """

    def __init__(self, images: Images, partition: str, recipe: Recipe, device: str) -> None:
        self.recipe, self.device = recipe, device
        self.train, self.test = (torch.from_numpy(part).to(device) for part in images.flat())
        self.train_digits, self.test_digits = (
            torch.from_numpy(labels).to(device) for labels in (images.train_labels, images.test_labels)
        )
        self.train_groups, self.test_groups = (
            torch.from_numpy(groups_of(partition, *part)).to(device)
            for part in ((images.train, images.train_labels), (images.test, images.test_labels))
        )

    def run(self, setting: str, seed: int, on_epoch: Callable[[], None]) -> dict[str, Any]:
        """Train and evaluate one model. The result depends only on the study, the setting and the seed.

        Returns:
            ``rows`` of results; ``pictures``, uint8 pixels in hex, by part and digit; and the CPU ``seconds`` used. The
            pictures of the ten-way variant include ``traversal``, by latent and step.

        Raises:
            FloatingPointError: if training diverges.
        """
        check_seed(seed)
        started = time.process_time()
        measure = self._ten_way if setting == TEN_WAY else self._split
        result = measure(setting, seed, on_epoch)
        return {**result, "seconds": round(time.process_time() - started, 1)}

    def _split(self, setting: str, seed: int, on_epoch: Callable[[], None]) -> dict[str, Any]:
        chosen = SETTINGS[setting]
        pixels, hidden = self.train.shape[1], self.recipe.hidden

        def build() -> PartitionedNetwork:
            return partitioned_autoencoder(pixels, hidden, CODE, chosen.routes, separate=chosen.separate)

        model = seeded(build, seed).to(self.device)

        def loss(index: Tensor, generator: torch.Generator) -> Tensor:
            images, groups = self.train[index.to(self.device)], self.train_groups[index.to(self.device)]
            outputs = model(images, groups)
            return partition_loss(
                outputs, lambda rebuilt: absolute_errors(images, rebuilt), groups, chosen.groups, chosen.penalties
            )

        self._fit(model, loss, seed, on_epoch)
        with torch.no_grad():
            outputs = model(self.test, self.test_groups)
        rebuilt = dict(zip(PARTS, (outputs.decoded, outputs.top, outputs.bottom), strict=True))
        rebuilt[CONSTANT] = self.train.median(dim=0).values.expand_as(self.test)
        groups = dict(zip(HALVES, (self.test_groups == 0, self.test_groups == 1), strict=True))
        rows = [row for part, images in rebuilt.items() for row in self._errors(part, images, groups)]
        return {"rows": rows, "pictures": self._pictures({part: rebuilt[part] for part in PARTS})}

    def _ten_way(self, setting: str, seed: int, on_epoch: Callable[[], None]) -> dict[str, Any]:
        routes = one_hot_routes(DIGITS)
        model = seeded(lambda: RoutedVAE(self.train.shape[1], self.recipe.hidden, routes), seed).to(self.device)

        def loss(index: Tensor, generator: torch.Generator) -> Tensor:
            chosen = index.to(self.device)
            return model.loss(self.train[chosen], self.train_digits[chosen], self.recipe.kl, generator)

        self._fit(model, loss, seed, on_epoch)
        with torch.no_grad():
            latents, _ = model.encode(self.test)
            rebuilt = model.decode(latents)
            steps = torch.linspace(0, 1, TRAVERSAL_STEPS, device=self.device)
            sliders = latents.quantile(0.99, dim=0).diag()
            traversal = model.decode(steps[:, None] * sliders[:, None])
        right = (model.classify(self.test) == self.test_digits).to(torch.float32)
        rows = [
            {**row, "accuracy": float(right[members].mean())}
            for row, members in zip(self._errors("decoder", rebuilt, {}), self._members({}).values(), strict=True)
        ]
        pictures = {**self._pictures({"decoder": rebuilt}), "traversal": [[_hex(i) for i in row] for row in traversal]}
        return {"rows": rows, "pictures": pictures}

    def _fit(
        self,
        model: torch.nn.Module,
        loss: Callable[[Tensor, torch.Generator], Tensor],
        seed: int,
        on_epoch: Callable[[], None],
    ) -> None:
        recipe = self.recipe
        optimizer = Adam(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
        for epoch in range(recipe.epochs):
            if recipe.decay:
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - epoch / recipe.epochs)
            train_epoch(optimizer, loss, len(self.train), recipe.batch_size, seed, epoch)
            on_epoch()

    def _members(self, groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks ``(N,)`` of the validation images: by digit, by group, and all. Empty masks are left out."""
        digits = {str(digit): self.test_digits == digit for digit in range(DIGITS)}
        members = {**digits, **groups, "all": torch.ones_like(self.test_digits, dtype=torch.bool)}
        return {name: mask for name, mask in members.items() if mask.any()}

    def _errors(self, part: str, rebuilt: Tensor, groups: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        squared, absolute = squared_errors(self.test, rebuilt), absolute_errors(self.test, rebuilt)
        return [
            {"part": part, "group": name, "mse": float(squared[mask].mean()), "mae": float(absolute[mask].mean())}
            for name, mask in self._members(groups).items()
        ]

    def _pictures(self, rebuilt: Mapping[str, Tensor]) -> dict[str, Any]:
        """The first validation image of every digit, and its reconstruction by each part."""
        first = [int(torch.nonzero(mask)[0]) for name, mask in self._members({}).items() if name != "all"]
        return {part: [_hex(images[i]) for i in first] for part, images in {"input": self.test, **rebuilt}.items()}


def _hex(image: Tensor) -> str:
    """Pixels in -1 … 1, as bytes in hex."""
    pixels: np.ndarray = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    return pixels.tobytes().hex()
