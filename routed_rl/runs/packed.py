"""A checkpoint in one file: a zip archive of the files of a checkpoint directory, not compressed, as by ``zip -0``."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch

from routed_rl.paths import expanded
from routed_rl.runs.checkpoint import (
    FILES,
    Checkpoint,
    CheckpointError,
    from_files,
    previous,
    read_checkpoint,
    refuse_to_overwrite,
    to_files,
    write_checkpoint,
)
from routed_rl.runs.files import JSON, StrPath, write_bytes

ONE_FILE = (".zip", ".pkl", ".pth", ".pt")
"""Suffixes of paths at which users of Stable-Baselines3 and torch expect one file."""
DAMAGED = (BadZipFile, ValueError, OSError, RuntimeError, NotImplementedError, EOFError)
"""What reading a damaged archive may raise."""


def write_anywhere(path: StrPath | BinaryIO, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, JSON]) -> None:
    """Write a checkpoint as a directory, or into one file. The bytes depend only on ``tensors`` and ``meta``.

    Args:
        path: a path, whose missing folders are made. If its suffix is in :data:`ONE_FILE`, the checkpoint is one file,
            unless there is a checkpoint directory already. Or a file that is open for bytes; it stays open.
        tensors: as for :func:`~routed_rl.runs.write_checkpoint`.
        meta: as there.

    Raises:
        CheckpointError: if there is something else than a checkpoint at the path.
        ValueError: if the path is neither, or the file is not open for writing bytes.
    """
    place = _place(path, "writable")
    if not isinstance(place, Path):
        place.write(_packed(tensors, meta))
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix.lower() not in ONE_FILE or place.is_dir():
        write_checkpoint(place, tensors, meta)
        return
    if os.path.lexists(place) and not _is_ours(place):
        refuse_to_overwrite(place)
    write_bytes(place, _packed(tensors, meta))


def read_anywhere(path: StrPath | BinaryIO) -> Checkpoint:
    """Return the checkpoint that :func:`write_anywhere` wrote. Nothing is unpickled or executed.

    Args:
        path: what was given there. If there is nothing at a path, it is tried with ``.zip`` at its end, or without.

    Raises:
        CheckpointError: if there is none, or it was truncated or edited.
        ValueError: if the path is neither, or the file is not open for reading bytes.
    """
    place = _place(path, "readable")
    if not isinstance(place, Path):
        return _unpacked(place, repr(place))
    if not _exists(place):
        other = place.with_suffix("") if place.suffix == ".zip" else place.with_name(f"{place.name}.zip")
        place = other if _exists(other) else place
    if not place.is_file():
        return read_checkpoint(place)
    with place.open("rb") as file:
        return _unpacked(file, repr(str(place)))


def _exists(place: Path) -> bool:
    """Whether there is something, or a directory that a killed writer was replacing."""
    return place.exists() or previous(place).exists()


def _place(path: Any, needed: str) -> Path | BinaryIO:
    """Return a path, or a file of bytes that is ``needed``: readable or writable."""
    if isinstance(path, (str, os.PathLike)):
        return expanded(path)
    file = getattr(path, "file", path)  # what a temporary file of Python's wraps
    if not isinstance(file, io.IOBase) or isinstance(file, io.TextIOBase) or file.closed or not getattr(file, needed)():
        mode = "rb" if needed == "readable" else "wb"
        raise ValueError(
            f"path must be a path, or a file that is open for bytes, as by open(…, {mode!r}), got {path!r}"
        )
    return path  # type: ignore[no-any-return]


def _is_ours(place: Path) -> bool:
    """Whether this is an empty file, or an archive with the files of a checkpoint alone."""
    try:
        with ZipFile(place) as archive:
            return set(archive.namelist()) <= FILES
    except DAMAGED:
        return place.is_file() and not place.stat().st_size


def _packed(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, JSON]) -> bytes:
    archive = io.BytesIO()
    with ZipFile(archive, "w", ZIP_STORED) as files:
        for name, data in to_files(tensors, meta).items():
            files.writestr(ZipInfo(name), data)  # ZipInfo has a fixed date
    return archive.getvalue()


def _unpacked(file: BinaryIO, name: str) -> Checkpoint:
    try:
        with ZipFile(file) as archive:
            if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed: unpack it into a folder, and load that")
            return from_files(archive.namelist(), archive.read)
    except DAMAGED as error:
        why = f"it wasn't a zip-file, or it is damaged ({error})" if isinstance(error, BadZipFile) else error
        raise CheckpointError(f"checkpoint {name} cannot be used: {why or 'it is damaged'}") from None
