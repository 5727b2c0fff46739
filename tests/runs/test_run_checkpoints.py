"""Checkpoints: exact, with fixed bytes, written atomically, rejected when damaged, and never executed."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.runs import CheckpointError, read_checkpoint, read_json, write_checkpoint, write_json

DTYPES = [
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]
META = {"step": 3, "lr": 1e-3, "names": ["a", "ü"], "none": None, "nested": {"z": True, "a": -0.0}}


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """Return the dtype, shape and bytes of a tensor, with the payloads of NaNs."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return tensor.dtype, tensor.shape, raw


@st.composite
def any_tensor(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = int(torch.Size(shape).numel())
    size = count * dtype.itemsize
    raw = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype is torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    flat = torch.frombuffer(raw, dtype=dtype) if size else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.T if tensor.dim() == 2 and draw(st.booleans()) else tensor


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(tensors=st.dictionaries(st.text("ab.é ", max_size=4), any_tensor(), max_size=4))
def test_tensors_come_back_to_the_bit(
    tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    write_checkpoint(path, tensors, META)
    found = read_checkpoint(path)
    assert {name: bits(t) for name, t in found.tensors.items()} == {n: bits(t) for n, t in tensors.items()}
    assert found.meta == META


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(True)}
    write_checkpoint(tmp_path / "one", tensors, META)
    write_checkpoint(tmp_path / "two", dict(reversed(tensors.items())), dict(reversed(META.items())))
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == ["manifest.json", "meta.json", "tensors.safetensors"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert (tmp_path / "one" / name).stat().st_mode == (tmp_path / "one/meta.json").stat().st_mode


def test_memory_may_be_shared_strided_negated_or_require_gradients(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tensors = {
        "base": base,
        "same": base,
        "part": base[3:6],
        "strided": base[::2],
        "expanded": base[:1].expand(4),
        "parameter": torch.nn.Parameter(base),
        "negated": torch.complex(base[1:2], base[1:2]).conj().imag,
    }
    write_checkpoint(tmp_path / "c", tensors, {})
    found = read_checkpoint(tmp_path / "c").tensors
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    found["base"].zero_()
    assert torch.equal(found["same"], base)  # loaded tensors are writable and share no memory


@pytest.mark.parametrize(
    ("tensors", "meta", "quoted"),
    [
        ({"w": [1.0]}, {}, "'w'"),
        ({"w": torch.eye(2).to_sparse()}, {}, "'w'"),
        ({"w": torch.zeros(2, dtype=torch.complex128)}, {}, "'w'"),
        ({"w": torch.zeros(2, device="meta")}, {}, "'w'"),
        ({"__metadata__": torch.zeros(2)}, {}, "'__metadata__'"),
        ({}, {"a": {"b": [1, {1, 2}]}}, r"meta\.a\.b\[1\] is a set"),
        ({}, {"a": {3: 1}}, r"meta\.a has the key 3"),
        ({}, {"loss": float("nan")}, r"meta\.loss is nan"),
        ({}, {"w": torch.zeros(1)}, r"meta\.w is a Tensor"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(
    tmp_path: Path, tensors: dict[str, Any], meta: dict[str, Any], quoted: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=quoted):
        write_checkpoint(tmp_path / "c", tensors, meta)
    assert list(tmp_path.iterdir()) == []


def test_only_checkpoints_are_written_over(tmp_path: Path) -> None:
    target = tmp_path / "c"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        write_checkpoint(target, {}, {})
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        write_checkpoint(tmp_path / "link", {}, {})
    assert (target / "thesis.tex").read_text() == "years of work"
    (target / "thesis.tex").rename(target / "meta.json")  # now it looks like a damaged checkpoint
    write_checkpoint(target, {}, {"n": 1})
    assert read_checkpoint(target).meta == {"n": 1}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c", "link"]


def rewrite(path: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest agree with the new content, as an attacker would."""
    (path / name).write_bytes(data)
    manifest = read_json(path / "manifest.json")
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    write_json(path / "manifest.json", manifest)


def edit_manifest(path: Path, **entries: object) -> None:
    write_json(path / "manifest.json", read_json(path / "manifest.json") | entries)


def relist(path: Path, name: str) -> None:
    """Make the manifest list the tensors file under another name."""
    files = read_json(path / "manifest.json")["files"]
    edit_manifest(path, files={"meta.json": files["meta.json"], name: files["tensors.safetensors"]})


def link_out(path: Path) -> None:
    (path / "tensors.safetensors").rename(path.parent / "elsewhere")
    (path / "tensors.safetensors").symlink_to("../elsewhere")


def flip(path: Path) -> None:
    data = bytearray((path / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "tensors.safetensors").write_bytes(data)


def replace_by_pipe(path: Path) -> None:
    (path / "meta.json").unlink()
    os.mkfifo(path / "meta.json")


DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda p: (p.rename(p.with_name("x")), p.write_text("")), "Not a directory"),
    "gone": (lambda p: p.rename(p.with_name("x")), "there is no checkpoint"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "no manifest.json"),
    "no tensors": (lambda p: (p / "tensors.safetensors").unlink(), "it has no tensors.safetensors"),
    "truncated": (lambda p: os.truncate(p / "tensors.safetensors", 60), "has the size 60 instead of 76"),
    "edited tensors": (flip, "has the sha256"),
    "edited meta": (lambda p: (p / "meta.json").write_text('{\n  "n": 2\n}\n'), "has the sha256"),
    "foreign": (lambda p: (p / "manifest.json").write_text('{"weights": 1}'), "not the manifest of a routed-rl"),
    "newer": (lambda p: edit_manifest(p, version=2), "version is 2, but this version of routed-rl reads up to 1"),
    "version true": (lambda p: edit_manifest(p, version=True, files=[]), "malformed"),
    "files a list": (lambda p: edit_manifest(p, files=[]), "malformed"),
    "entry a list": (
        lambda p: edit_manifest(p, files={"meta.json": [], "tensors.safetensors": 1}),
        "malformed",
    ),
    "extra file": (lambda p: (p / "optimizer.pt").write_bytes(b""), "contains 'optimizer.pt'"),
    "extra directory": (lambda p: (p / "x").mkdir(), "contains 'x'"),
    "listed outside": (lambda p: relist(p, "../../etc/passwd"), "lists the files"),
    "link outside": (link_out, "symbolic links"),
    "pipe": (replace_by_pipe, "not a regular file"),
    "not json": (lambda p: (p / "manifest.json").write_text("{'a': 1}"), "is not JSON"),
    "not text": (lambda p: (p / "manifest.json").write_bytes(b"\xff\x00"), "is not JSON"),
    "manifest too deep": (lambda p: (p / "manifest.json").write_bytes(DEEP), "nested too deeply"),
    "meta too deep": (lambda p: rewrite(p, "meta.json", DEEP), "nested too deeply"),
    "meta nan": (lambda p: rewrite(p, "meta.json", b'{"loss": NaN}'), "meta.json.loss is nan"),
    "meta infinite": (lambda p: rewrite(p, "meta.json", b'{"loss": 1e999}'), "meta.json.loss is inf"),
    "meta a list": (lambda p: rewrite(p, "meta.json", b"[]"), "not a JSON object"),
    "no safetensors": (lambda p: rewrite(p, "tensors.safetensors", b"\x80" * 50), "not a safetensors file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_checkpoint_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c"
    write_checkpoint(path, {"w": torch.arange(3.0)}, {"n": 1})
    apply, why = DAMAGE[damage]
    apply(path)
    with pytest.raises(CheckpointError) as raised:
        read_checkpoint(path)
    message = str(raised.value)
    assert why in message
    assert str(path) in message
    assert "\n" not in message


class Malice:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["tensors.safetensors", "meta.json", "manifest.json", "model.pkl"])
@pytest.mark.parametrize("torch_format", [False, True])
def test_a_pickle_is_never_executed(tmp_path: Path, name: str, torch_format: bool) -> None:
    path, marker, bomb = tmp_path / "c", tmp_path / "executed", tmp_path / "bomb"
    if torch_format:
        torch.save(Malice(marker), bomb)
        torch.load(bomb, weights_only=False)
    else:
        bomb.write_bytes(pickle.dumps(Malice(marker)))
        pickle.loads(bomb.read_bytes())
    assert marker.exists()  # unpickling does run the code
    marker.unlink()
    write_checkpoint(path, {"w": torch.arange(3.0)}, {"n": 1})
    if name in ("tensors.safetensors", "meta.json"):
        rewrite(path, name, bomb.read_bytes())
    else:
        (path / name).write_bytes(bomb.read_bytes())
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_reader_follows_a_replacement_under_its_eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    write_checkpoint(path, {}, {"n": 0})
    parse, replacements = json.loads, iter([1, 2])

    def replace_meanwhile(text: str) -> Any:
        if (n := next(replacements, None)) is not None:
            write_checkpoint(path, {}, {"n": n})
        return parse(text)

    monkeypatch.setattr(json, "loads", replace_meanwhile)
    assert read_checkpoint(path).meta == {"n": 2}


def test_all_is_on_the_disk_before_it_is_named_and_the_name_before_the_old_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    write_checkpoint(path, {}, {"n": 0})
    on_disk: set[int] = set()
    rename, rmtree, seen = Path.rename, shutil.rmtree, []

    def checked_rename(source: Path, target: Path) -> Path:
        if target == path:
            assert {entry.stat().st_ino for entry in (source, *source.iterdir())} <= on_disk
            on_disk.clear()
            seen.append("named")
        return rename(source, target)

    def checked_rmtree(directory: Path) -> None:
        assert seen == ["named"]
        assert on_disk == {tmp_path.stat().st_ino}
        seen.append("removed")
        rmtree(directory)

    monkeypatch.setattr(os, "fsync", lambda descriptor: on_disk.add(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "rename", checked_rename)
    monkeypatch.setattr(shutil, "rmtree", checked_rmtree)
    write_checkpoint(path, {"w": torch.zeros(2)}, {"n": 1})
    assert seen == ["named", "removed"]


def test_a_killed_replacement_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    script = Path(__file__).with_name("toy_run.py")
    subprocess.run([sys.executable, script, "kill_writes", tmp_path], check=True)
    deaths = sorted(tmp_path.iterdir(), key=lambda entry: int(entry.name))
    versions = []
    for directory in deaths:
        checkpoint = read_checkpoint(directory / "model")
        versions.append(checkpoint.meta["version"])
        expected = torch.zeros(3) if versions[-1] == "old" else torch.ones(3)
        assert torch.equal(checkpoint.tensors["weights"], expected)
        write_checkpoint(directory / "model", {}, {"version": "newest"})
        assert read_checkpoint(directory / "model").meta == {"version": "newest"}
        assert not (directory / ".model.previous").exists()
    assert versions == sorted(versions, reverse=True)  # old, ..., old, new, ..., new
    assert versions.count("old") > 8
    assert versions.count("new") > 3
