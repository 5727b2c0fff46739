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
    Checkpoint,
    CheckpointError,
    from_files,
    read_checkpoint,
    to_files,
    write_checkpoint,
)
from routed_rl.runs.files import JSON, StrPath, write_bytes

ONE_FILE = (".zip", ".pkl", ".pth", ".pt")
"""Suffixes of paths at which users of Stable-Baselines3 and torch expect one file."""


def write_anywhere(path: StrPath | BinaryIO, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, JSON]) -> None:
    """Write a checkpoint as a directory, or into one file. The bytes depend only on ``tensors`` and ``meta``.

    Args:
        path: a path, whose missing folders are made. If its suffix is in :data:`ONE_FILE`, the checkpoint is one file.
            Or a file that is open for bytes; it stays open.
        tensors: as for :func:`~routed_rl.runs.write_checkpoint`.
        meta: as there.

    Raises:
        CheckpointError: if there is something else than a checkpoint at the path.
        ValueError: if the path is neither, or the file is closed or open for text.
    """
    if not isinstance(place := _place(path), Path):
        place.write(_packed(tensors, meta))
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix not in ONE_FILE:
        write_checkpoint(place, tensors, meta)
        return
    if os.path.lexists(place):
        try:
            read_anywhere(place)
        except CheckpointError:
            raise CheckpointError(
                f"{str(place)!r} is not a checkpoint and is not overwritten: choose another path"
            ) from None
    write_bytes(place, _packed(tensors, meta))


def read_anywhere(path: StrPath | BinaryIO) -> Checkpoint:
    """Return the checkpoint that :func:`write_anywhere` wrote. Nothing is unpickled or executed.

    Args:
        path: what was given there. If there is nothing at a path, it is tried with ``.zip`` at its end, or without.

    Raises:
        CheckpointError: if there is none, or it was truncated or edited.
        ValueError: as :func:`write_anywhere`.
    """
    if not isinstance(place := _place(path), Path):
        return _unpacked(place, repr(place))
    if not place.exists():
        other = place.with_suffix("") if place.suffix == ".zip" else place.with_name(f"{place.name}.zip")
        place = other if other.exists() else place
    if not place.is_file():
        return read_checkpoint(place)
    with place.open("rb") as file:
        return _unpacked(file, repr(str(place)))


def _place(path: Any) -> Path | BinaryIO:
    """Return a path, or a file that is open for bytes."""
    if isinstance(path, (str, os.PathLike)):
        return expanded(path)
    if not isinstance(path, io.IOBase) or isinstance(path, io.TextIOBase) or path.closed:
        raise ValueError(f"path must be a path, or a file that is open for bytes, as by open(…, 'wb'), got {path!r}")
    return path  # type: ignore[return-value]


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
                raise ValueError("it is compressed")
            return from_files(archive.namelist(), archive.read)
    except (BadZipFile, ValueError, OSError) as error:
        why = f"it wasn't a zip-file that is whole: {error}" if isinstance(error, BadZipFile) else error
        raise CheckpointError(f"checkpoint {name} cannot be used: {why}") from None
