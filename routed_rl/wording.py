"""The words of errors: options as the command line writes them, or as Python does; and the nearest known name.

Errors are raised with options, such as ``--batch-size``. Where a command shows them, they stay so, and fields of its
options get their names as options. In Python it is the other way round: ``batch_size``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

_OPTION = re.compile(r"(?<![\w'\"-])(?<!pip install )--([a-z][a-z0-9.-]*[a-z0-9])")
_FIELD = re.compile(r"(?<![\w.'\"/=-])(?<!--settings )[a-z][a-z0-9]*(?:[._][a-z0-9]+)+(?![\w'\"(/=])")
_FIRST = re.compile(r"^[a-z]+(?= must )")
_spoken: Mapping[str, str] | None = None
"""Options by field, while a command runs in this process. None: no command runs, Python code calls us."""


@contextmanager
def command_line() -> Iterator[None]:
    """Within the block, name options as the command line does."""
    global _spoken
    before, _spoken = _spoken, {}
    try:
        yield
    finally:
        _spoken = before


def speak_of(options: type) -> None:
    """Until the end of the block of :func:`command_line`, name fields of this dataclass as options. Else do nothing."""
    global _spoken
    if _spoken is not None:
        _spoken = _with_short_names(option_names(options))


def spoken(text: str) -> str:
    """Return the text of an error with options as the reader writes them."""
    if _spoken is None:
        return _OPTION.sub(lambda match: _as_field(match[1]), text)
    names = _spoken
    text = _FIELD.sub(lambda match: names.get(match[0], match[0]), text)
    return _FIRST.sub(lambda match: names.get(match[0], match[0]), text)


def shown(value: object) -> str:
    """Return a value as the reader writes it: ``0.1 0.4`` on the command line, ``[0.1, 0.4]`` in Python."""
    if _spoken is None:
        return repr(list(value) if isinstance(value, tuple) else value)
    if isinstance(value, Mapping):
        value = [f"{name}={each}" for name, each in value.items()]
    return (" ".join(map(str, value)) or "none") if isinstance(value, (list, tuple)) else str(value)


def written(option: str, value: object) -> str:
    """Return an option with its value as the reader writes it: ``--levels 0.1 0.4``, or ``levels=[0.1, 0.4]``."""
    return f"{spoken(option)}={shown(value)}" if _spoken is None else f"{option} {shown(value)}"


def again() -> str:
    """Return how the reader starts again what was interrupted."""
    return "run it again" if _spoken is None else "start the same command again"


def _as_field(option: str) -> str:
    *groups, name = option.replace("-", "_").split(".")
    value = "=False" if name.startswith("no_") else ""
    return ".".join([*groups, name.removeprefix("no_")]) + value


def option_names(of: type) -> dict[str, str]:
    """Return the option of each field of a dataclass of options, such as ``--distil.every`` for ``distil.every``."""
    return dict(_flat(of))


def _with_short_names(options: Mapping[str, str]) -> dict[str, str]:
    """Name fields of groups by their own name too, unless several groups have it."""
    short: dict[str, str | None] = {}
    for name, option in options.items():
        last = name.rpartition(".")[2]
        short[last] = None if last in short else option
    return {**{name: option for name, option in short.items() if option is not None}, **options}


def _flat(of: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    hints = get_type_hints(of)
    for field in fields(of):
        name = f"{prefix}{field.name}"
        if is_dataclass(hints[field.name]):
            yield from _flat(hints[field.name], f"{name}.")
        else:
            yield name, f"--{name.replace('_', '-')}"


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = repr) -> str:
    """Return "; did you mean …?" with the nearest known names, or nothing.

    A name in a group, such as ``relearn.learning_rate``, is also found by its last part, and by its initials: ``lr``.
    """
    there: dict[str, str] = {}
    for one in known:
        there.setdefault(_key(one), one)
    group, _, last = _key(name).rpartition(".")
    of_group = [key for key in there if not group or key.rpartition(".")[0] == group]
    last_parts = {key: key.rpartition(".")[2] for key in of_group}
    found = [key for key, part in last_parts.items() if last in (part, _initials(part))]
    found = found or difflib.get_close_matches(_key(name), there, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(show(there[key]) for key in found[:3])}?" if found else ""


def _key(name: str) -> str:
    return name.lower().replace("-", "_").lstrip("_").removeprefix("no_")


def _initials(name: str) -> str | None:
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else None
