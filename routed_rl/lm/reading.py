"""Read the user's files: texts, rows, lists and folders of them. What is wrong is said with the file and the line."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from routed_rl.paths import expanded
from routed_rl.runs.files import StrPath

TEXT, LINES = ".txt", ".jsonl"
"""Endings of the names of files with documents, in upper or lower case."""
SHOWN = 60
"""Characters of a line that are quoted in an error."""


def lines(path: StrPath) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file, numbered from 1, without their ends: a line feed, a carriage return, or both.

    Raises:
        ValueError: at a line that is not UTF-8. A byte order mark at the start is left out.
        OSError: if the file cannot be read.
    """
    with expanded(path).open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) & 0xFF  # how surrogateescape keeps a byte
                raise ValueError(
                    f"{place(path, number)}: the byte {byte:#04x} is not UTF-8 text: save the file as UTF-8"
                ) from None
            yield number, line.removesuffix("\n")


def rows(path: StrPath) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON objects of a file with one object a line, each after its place. Empty lines are left out.

    Raises:
        ValueError, OSError: as :func:`lines`, or for a line that is not a JSON object.
    """
    for number, line in lines(path):
        if not line.strip():
            continue
        where = place(path, number)
        try:
            row = json.loads(line)
        except RecursionError:
            raise ValueError(f"{where}: not JSON that can be read: it is nested too deeply") from None
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise ValueError(f"{where}: not JSON: {reason}, in {line.strip()[:SHOWN]!r}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object on each line, got {line.strip()[:SHOWN]!r}")
        yield where, row


def read_list(path: StrPath) -> list[str]:
    """Return the lines of a file that are not empty. Spaces stay: ``" virus"`` and ``"virus"`` are two tokens.

    Raises:
        ValueError, OSError: as :func:`lines`, or for a file without such lines.
    """
    found = [line for _, line in lines(path) if line.strip()]
    if not found:
        raise ValueError(f"the list {str(path)!r} is empty")
    return found


def text_files(folder: StrPath) -> list[Path]:
    """Return the ``.txt`` and ``.jsonl`` files in a folder and in the folders in it, sorted.

    Warns:
        UserWarning: how many other files and folders are left out, and why.

    Raises:
        ValueError: if there are no such files.
        OSError: if a folder cannot be read.
    """
    files, left_out = visible_files(folder)
    found = [file for file in files if file.suffix.lower() in (TEXT, LINES)]
    others = [file.name for file in files if file.suffix.lower() not in (TEXT, LINES)]
    left_out = {f"neither {TEXT} nor {LINES}": others, **left_out}
    said = ", ".join(f"{len(names)} {reason} ({names[0]!r})" for reason, names in left_out.items() if names)
    if not found:
        raise ValueError(f"the folder {str(folder)!r} holds no {TEXT} or {LINES} file" + (said and f", but {said}"))
    if said:
        warnings.warn(f"the folder {str(folder)!r}: files read: {len(found)}; left out: {said}", stacklevel=3)
    return found


def visible_files(folder: StrPath) -> tuple[list[Path], dict[str, list[str]]]:
    """Return the files in a folder and in the folders in it, sorted; and the names of what is left out, by reason.

    Raises:
        OSError: if a folder cannot be read.
    """
    found, hidden, links, others = [], [], [], []
    for root, folders, files in os.walk(expanded(folder), onerror=_refuse):
        folders.sort()
        for path in (Path(root, name) for name in (*folders, *sorted(files))):
            if path.name.startswith("."):
                hidden.append(path.name)
            elif path.is_file():
                found.append(path)
            elif not path.is_dir():
                others.append(path.name)
            elif path.is_symlink():
                links.append(path.name)
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found), {"hidden": hidden, "links to folders": links, "not there, or not files": others}


def place(path: StrPath, number: int) -> str:
    """Return how errors name a line of a file."""
    return f"{str(path)!r}, line {number}"


def _refuse(error: OSError) -> None:
    raise error
