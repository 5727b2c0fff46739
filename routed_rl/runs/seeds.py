"""Independent random streams by name, from one seed."""

import hashlib
import json
import operator


def check_seed(seed: int) -> int:
    """Return `seed` as an int; ValueError if it is not an integer, as a bool, 1.0 and "1" are not."""
    number = _integer(seed)
    if number is None:
        raise ValueError(f"seed {seed!r} is not an integer")
    return number


def derive_seed(seed: int, *path: str | int) -> int:
    """Return the child seed, in [0, 2**31), that `path` names under `seed`: `derive_seed(3, "env", 0)`.

    A SHA-256 of seed and path, so the same in every process and on every platform; other paths give
    seeds independent of it, and `"1"` and `1` are other paths.

    Raises ValueError for a seed that is not an integer, TypeError for a path element that is neither
    a string nor an integer.
    """
    names = [element if isinstance(element, str) else _integer(element) for element in path]
    if None in names:
        raise TypeError(f"seed path {path!r}: {path[names.index(None)]!r} is neither a string nor an integer")
    text = json.dumps([check_seed(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _integer(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
