"""Write files atomically, and read and write strict JSON that loads exactly as it was saved.

A new file or directory is written under a unique temporary name next to its target, flushed to disk, and renamed to
the target. A killed writer leaves at most the temporary file, which `is_temporary` recognizes.
"""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from routed_rl.paths import expanded

# None, bool, int, float, str, and lists, tuples and mappings of them. `plain_json` checks this when JSON is written.
# A precise type would make the type checker reject dict literals with values of several types (`dict[str, object]`).
JSON: TypeAlias = Any
StrPath: TypeAlias = str | os.PathLike[str]

_MAX_DEPTH = 100  # far more than any config needs, and far below Python's recursion limit


def plain_json(value: JSON, where: str, depth: int = 0) -> Any:
    """Return a copy of `value` as JSON would return it (mappings as dict, tuples as list).

    Python's encoder also accepts values that JSON does not return: keys that are not strings, NaN, infinity. For these
    this function raises TypeError or ValueError. The message quotes the place in `value`, which it calls `where`.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where} is nested too deeply for JSON (more than {_MAX_DEPTH} levels)")
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{where} is {value}, which JSON cannot hold")
            return float(value)
        case list() | tuple():
            return [plain_json(child, f"{where}[{i}]", depth + 1) for i, child in enumerate(value)]
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"{where} has the key {key!r}, but JSON keys must be strings")
            return {key: plain_json(child, f"{where}.{key}", depth + 1) for key, child in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def json_bytes(value: JSON, where: str) -> bytes:
    """Return `value` as JSON text with fixed bytes: ASCII, sorted keys, indent 2, a newline at the end."""
    text = json.dumps(plain_json(value, where), sort_keys=True, indent=2, allow_nan=False)
    return text.encode() + b"\n"


def parse_json(data: bytes, where: str) -> Any:
    """Return the JSON value in `data`.

    Raises ValueError, with the name `where`, for JSON that is malformed, nested too deeply, or has NaN or infinity.
    """
    try:
        return plain_json(json.loads(data.decode("utf-8")), where)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None


def read_json(path: StrPath) -> Any:
    """Return the JSON value in the file at `path`; raise a one-line ValueError if the file is not JSON."""
    return parse_json(expanded(path).read_bytes(), repr(str(path)))


def write_json(path: StrPath, data: JSON) -> None:
    """Write `data` to `path` as JSON, atomically: a reader sees the old file or the new one.

    The bytes depend only on `data`. Raises TypeError or ValueError, with the key, for a value that JSON cannot hold;
    then nothing is written.
    """
    write_bytes(path, json_bytes(data, Path(path).name))


def write_bytes(path: StrPath, data: bytes) -> None:
    """Write `data` to `path`, atomically: a reader sees the old file or the new one."""
    path = expanded(path)
    temporary = temporary_beside(path)
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def writing(path: StrPath) -> Iterator[None]:
    """Turn the error of a library that cannot write to `path` into the OSError of the system.

    Libraries in Rust (safetensors, tokenizers) raise errors of their own. Only their text has the system's error:
    "No space left on device (os error 28)".
    """
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def move_in(temporary: Path, path: Path) -> None:
    """Rename a new directory to `path`. If another process has written the same there meanwhile, remove it instead."""
    try:
        temporary.rename(path)
    except OSError:
        if not path.exists():
            raise
        remove(temporary)
    sync(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Create the file `path` with `data`; return when the data is on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Flush the file at `path` to the disk; of a directory, flush the names of its entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove the file, link or directory at `path`, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return an unused temporary name in the directory of `path`."""
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")


def is_temporary(name: str, target: str | None = None) -> bool:
    """Return whether `name` is a temporary name; if `target` is given, one for this file."""
    stem = ".+" if target is None else re.escape(target)
    return re.fullmatch(rf"\.{stem}\.tmp-[0-9a-f]{{16}}", name, re.DOTALL) is not None
