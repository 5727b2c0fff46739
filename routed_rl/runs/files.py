"""Files that are either wholly there or not there at all, and a JSON that loads as it was saved.

A new file or directory is made under a unique temporary name beside its target, flushed to disk and
renamed into place. A killed writer leaves at most that temporary, which `is_temporary` recognises.
"""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

# None, bool, int, float, str, and lists, tuples and mappings of them. Checked when written, by `plain_json`:
# a checker of types would refuse dict literals with values of several types, which are `dict[str, object]`.
JSON: TypeAlias = Any
StrPath: TypeAlias = str | os.PathLike[str]

_MAX_DEPTH = 100  # far more than any config needs; far less than Python's own limit on recursion


def plain_json(value: JSON, where: str, depth: int = 0) -> Any:
    """Return a copy of `value` as it would come back from JSON (mappings as dict, tuples as list).

    Python's encoder lets through what does not come back: keys that are not strings, NaN, infinity.
    Raises TypeError or ValueError, quoting the place under the name `where`.
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
                    raise TypeError(f"{where} has the key {key!r}, and JSON keys are strings")
            return {key: plain_json(child, f"{where}.{key}", depth + 1) for key, child in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def json_bytes(value: JSON, where: str) -> bytes:
    """Return `value` as the one text it has: ASCII, keys sorted, two spaces, a newline at the end."""
    text = json.dumps(plain_json(value, where), sort_keys=True, indent=2, allow_nan=False)
    return text.encode() + b"\n"


def parse_json(data: bytes, where: str) -> Any:
    """Return the JSON in `data`; ValueError, naming `where`, if it is malformed, too deep or not finite."""
    try:
        return plain_json(json.loads(data.decode("utf-8")), where)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None


def read_json(path: StrPath) -> Any:
    """Return the JSON in the file at `path`; ValueError in one line if there is none in it."""
    return parse_json(Path(path).read_bytes(), repr(str(path)))


def write_json(path: StrPath, data: JSON) -> None:
    """Write `data` to `path` as JSON, atomically: a reader sees the old file or the new one.

    The bytes depend on `data` alone. Raises TypeError or ValueError, naming the key, for what JSON
    cannot hold, before anything is written.
    """
    write_bytes(path, json_bytes(data, Path(path).name))


def write_bytes(path: StrPath, data: bytes) -> None:
    """Write `data` to `path`, atomically: a reader sees the old file or the new one."""
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Create the file `path` with `data`, and return once it is on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring the file, or the names in the directory, at `path` to the disk."""
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
    """Return whether `name` is a temporary name, of the file named `target` if one is given."""
    stem = ".+" if target is None else re.escape(target)
    return re.fullmatch(rf"\.{stem}\.tmp-[0-9a-f]{{16}}", name, re.DOTALL) is not None
