"""Derive independent child seeds, by name, from one seed."""

import hashlib
import json
import operator


def check_seed(seed: int) -> int:
    """Return `seed` as an int; raise a ValueError if it is not an integer. A bool, 1.0 and "1" are not integers."""
    number = _integer(seed)
    if number is None:
        raise ValueError(f"seed must be an integer, got {seed!r}")
    return number


def derive_seed(seed: int, *path: str | int) -> int:
    """Return the child seed, in [0, 2**31), of `seed` for the name `path`: `derive_seed(3, "env", 0)`.

    It is a SHA-256 of seed and path, so it is the same in every process and on every platform. Different paths give
    independent seeds; `"1"` and `1` are different paths.

    Raises ValueError if the seed is not an integer, TypeError if a path element is neither a string nor an integer.
    """
    names = [element if isinstance(element, str) else _integer(element) for element in path]
    if None in names:
        raise TypeError(
            f"every element of a seed path must be a string or an integer, got {path[names.index(None)]!r} in {path!r}"
        )
    text = json.dumps([check_seed(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _integer(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
