"""Checkpoints: directories with tensors and JSON. A damaged one is rejected, and reading never executes code.

    tensors.safetensors   the tensors
    meta.json             everything else
    manifest.json         format, version, size and SHA-256 of the other two; written last

A checkpoint is written under a temporary name and then renamed to its own. A directory cannot be renamed over a
non-empty one, so replacing an old checkpoint takes three steps: rename `NAME` to `.NAME.previous`, rename the new
directory to `NAME`, remove `.NAME.previous`. So at every moment one of the two names is a complete checkpoint.
`read_checkpoint` reads `.NAME.previous` if `NAME` is missing. One process may write at a time, any number may read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from routed_rl.errors import UserError
from routed_rl.paths import expanded
from routed_rl.runs.files import (
    JSON,
    StrPath,
    is_temporary,
    json_bytes,
    parse_json,
    remove,
    sync,
    temporary_beside,
    write_synced,
    writing,
)

if TYPE_CHECKING:
    import torch  # at run time it is imported where it is used: to list runs does not need it

FORMAT = "routed-rl checkpoint"
VERSION = 1
TENSORS, META, MANIFEST = "tensors.safetensors", "meta.json", "manifest.json"
FILES = {TENSORS, META, MANIFEST}

_DTYPES = {
    "torch.bool",
    *("torch.int8", "torch.int16", "torch.int32", "torch.int64"),
    *("torch.uint8", "torch.uint16", "torch.uint32", "torch.uint64"),
    *("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"),
}


class CheckpointError(UserError):
    """A checkpoint cannot be read or replaced; the message quotes its path and says why."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: `tensors` by name, on the CPU, and `meta`, as JSON returns it."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


def write_checkpoint(path: StrPath, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, JSON]) -> None:
    """Write a checkpoint to `path`, atomically; it replaces an earlier checkpoint there.

    The bytes depend only on `tensors` and `meta`. Tensors on any device are saved dense and contiguous. Tensors that
    share memory are saved separately.

    Raises TypeError or ValueError, with its name, for a tensor or meta entry that cannot be saved; CheckpointError if
    `path` is something else than a checkpoint; OSError if the disk cannot be written.
    """
    from safetensors.torch import save_file

    path = expanded(path)
    dense = _dense(tensors)
    meta_bytes = json_bytes(meta, "meta")
    if os.path.lexists(path) and not _is_ours(path):
        refuse_to_overwrite(path)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        write_synced(temporary / META, meta_bytes)
        with writing(path / TENSORS):
            save_file(dense, temporary / TENSORS)
        # safetensors makes its file private. Give it the same permissions as the other files, which follow the umask.
        (temporary / TENSORS).chmod(stat.S_IMODE((temporary / META).stat().st_mode))
        sync(temporary / TENSORS)
        files = {name: _fingerprint(temporary / name) for name in (META, TENSORS)}
        write_synced(temporary / MANIFEST, _manifest(files))
        sync(temporary)
        _move_in(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_checkpoint(path: StrPath) -> Checkpoint:
    """Return the checkpoint at `path`; reading needs up to twice its size in memory.

    Each file is read once, and the same bytes are hashed and parsed. Only a JSON and a safetensors parser read them:
    nothing is unpickled or executed. Raises CheckpointError, in one line, if the checkpoint is missing, truncated,
    edited, of another format or a newer version, or contains anything but its three files.
    """
    path = expanded(path)
    while True:
        directory = _open(path)
        try:
            return from_files(os.listdir(directory), partial(_regular_bytes, directory))
        except (ValueError, OSError) as error:
            if not _replaced(path, directory):
                why = f"{error.filename!r}: {error.strerror}" if isinstance(error, OSError) else error
                raise CheckpointError(f"checkpoint {str(path)!r} cannot be used: {why}") from None
        finally:
            os.close(directory)


def to_files(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, JSON]) -> dict[str, bytes]:
    """Return the files of the checkpoint that :func:`write_checkpoint` would write, by name; raises as it does."""
    from safetensors.torch import save

    files = {META: json_bytes(meta, "meta"), TENSORS: save(_dense(tensors))}
    return files | {MANIFEST: _manifest({name: _found(data) for name, data in files.items()})}


def refuse_to_overwrite(path: Path) -> NoReturn:
    """Raise the CheckpointError of a path at which there is something else than a checkpoint."""
    raise CheckpointError(f"{str(path)!r} is not a checkpoint and is not overwritten: choose another path")


def sweep(directory: Path) -> None:
    """Clean `directory` after killed writers: remove temporary files, and finish or undo replacements.

    The caller must make sure that no process is writing there.
    """
    for entry in list(directory.iterdir()):
        if is_temporary(entry.name):
            remove(entry)
        elif replaced := re.fullmatch(r"\.(.+)\.previous", entry.name, re.DOTALL):
            if os.path.lexists(entry.with_name(replaced[1])):
                remove(entry)
            else:
                entry.rename(entry.with_name(replaced[1]))


def _dense(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import torch

    dense: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"a tensor cannot be saved under the name {name!r}: use another string")
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensor {name!r} must be a torch.Tensor, got {type(tensor).__name__}")
        if str(tensor.dtype) not in _DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
            raise ValueError(
                f"tensor {name!r} cannot be saved: it must be a dense tensor with data and a bool, integer or float "
                f"dtype, got {tensor.dtype}, {tensor.layout} on {tensor.device}"
            )
        plain = tensor.detach().cpu().resolve_neg().contiguous()
        if plain.untyped_storage().data_ptr() in storages:
            plain = plain.clone()
        storages.add(plain.untyped_storage().data_ptr())
        dense[name] = plain
    return dense


def _manifest(files: dict[str, JSON]) -> bytes:
    manifest: dict[str, JSON] = {"format": FORMAT, "version": VERSION, "files": files}
    return json_bytes(manifest, MANIFEST)


def _fingerprint(path: Path) -> dict[str, JSON]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "size": file.tell()}


def _is_ours(path: Path) -> bool:
    """Return whether `path` is a directory with only files of a checkpoint, complete or not."""
    return not path.is_symlink() and path.is_dir() and {entry.name for entry in path.iterdir()} <= FILES


def previous(path: Path) -> Path:
    """Return where a checkpoint directory is while another replaces it."""
    path = path.absolute()  # "." has no name
    return path.with_name(f".{path.name}.previous")


def _move_in(temporary: Path, path: Path) -> None:
    """Move the directory `temporary` to `path`, in the steps of the module docstring."""
    before = previous(path)
    if path.exists():
        remove(before)  # left by a writer that was killed after its second rename
        path.rename(before)
    temporary.rename(path)
    sync(path.parent)
    remove(before)


def _open(path: Path) -> int:
    """Return a descriptor of the checkpoint directory at `path`; it stays valid if the directory is renamed."""
    # The third attempt is for a replacement that was completed between the first and the second.
    for candidate in (path, previous(path), path):
        try:
            return os.open(candidate, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {error.strerror}") from None
    raise CheckpointError(f"there is no checkpoint at {str(path)!r}")


def _replaced(path: Path, directory: int) -> bool:
    """Return whether a writer has replaced the checkpoint at `path` since `directory` was opened."""
    current = _open(path)
    try:
        return not os.path.samestat(os.fstat(directory), os.fstat(current))
    finally:
        os.close(current)


def from_files(names: Iterable[str], read: Callable[[str], bytes]) -> Checkpoint:
    """Return the checkpoint made of the files with these names; raise a ValueError if they are none.

    Args:
        names: all names in the directory or archive.
        read: name → content.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if MANIFEST not in (names := set(names)):
        raise ValueError(f"it has no {MANIFEST}, so it is incomplete or not a checkpoint")
    files = _listed_files(parse_json(read(MANIFEST), MANIFEST))
    if strangers := names - {MANIFEST, *files}:
        raise ValueError(f"it contains {min(strangers)!r}, which is not a file of a checkpoint")
    if missing := files.keys() - names:
        raise ValueError(f"it has no {min(missing)}")
    meta = parse_json(_unchanged(META, read(META), files[META]), META)
    if not isinstance(meta, dict):
        raise ValueError(f"{META} is not a JSON object")
    try:
        return Checkpoint(load(_unchanged(TENSORS, read(TENSORS), files[TENSORS])), meta)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise ValueError(f"{TENSORS} is not a safetensors file: {error}") from None


def _listed_files(manifest: Any) -> dict[str, Any]:
    """Return the manifest's entries by file name; raise a ValueError unless it is a manifest of this version."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is not the manifest of a {FORMAT}")
    version, files = manifest.get("version"), manifest.get("files")
    if type(version) is int and version > VERSION:
        raise ValueError(f"its format version is {version}, but this version of routed-rl reads up to {VERSION}")
    if version != VERSION or not isinstance(files, dict):
        raise ValueError(f"{MANIFEST} is malformed")
    if set(files) != {META, TENSORS}:
        raise ValueError(f"{MANIFEST} lists the files {sorted(files)} instead of {[META, TENSORS]}")
    return files


def _found(data: bytes) -> dict[str, JSON]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _unchanged(name: str, data: bytes, listed: Any) -> bytes:
    found = _found(data)
    if not isinstance(listed, dict) or set(listed) != set(found):
        raise ValueError(f"{MANIFEST} is malformed")
    for kind, value in sorted(found.items(), reverse=True):
        if value != listed[kind]:
            raise ValueError(f"{name} has the {kind} {value} instead of {listed[kind]}, so it was damaged or edited")
    return data


def _regular_bytes(directory: int, name: str) -> bytes:
    # O_NOFOLLOW: do not follow a link out of the directory. O_NONBLOCK: do not wait for the other end of a pipe.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{name} is not a regular file")
        return file.read()
