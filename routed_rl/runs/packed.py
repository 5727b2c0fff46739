"""A checkpoint in an open file: an archive of the files of a checkpoint directory, not compressed, as by ``zip -0``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import BinaryIO, TypeGuard
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch

from routed_rl.runs.checkpoint import Checkpoint, CheckpointError, from_files, to_files
from routed_rl.runs.files import JSON


def is_open_file(path: object) -> TypeGuard[BinaryIO]:
    """Return whether this is an open file of bytes; raise a ValueError for one of text, or a closed one."""
    if not isinstance(path, io.IOBase):
        return False
    if path.closed or isinstance(path, io.TextIOBase):
        wanted = "a file that is open for bytes, as by open(name, 'wb') or open(name, 'rb')"
        raise ValueError(f"path must be a path or {wanted}, got {path!r}")
    return True


def write_packed(file: BinaryIO, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, JSON]) -> None:
    """Write a checkpoint to an open file, which stays open; the bytes depend only on ``tensors`` and ``meta``.

    Raises:
        TypeError, ValueError: as :func:`~routed_rl.runs.write_checkpoint`, before anything is written.
    """
    files = to_files(tensors, meta)
    with ZipFile(file, "w", ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(ZipInfo(name), data)  # ZipInfo has a fixed date


def read_packed(file: BinaryIO) -> Checkpoint:
    """Return the checkpoint that :func:`write_packed` wrote to a file.

    Raises:
        CheckpointError: if it is no such archive, or was truncated or edited. Nothing is unpickled or executed.
    """
    try:
        with ZipFile(file) as archive:
            if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
            return from_files(archive.namelist(), archive.read)
    except (BadZipFile, ValueError, OSError) as error:
        raise CheckpointError(f"the open file {file!r} cannot be used as a checkpoint: {error}") from None
