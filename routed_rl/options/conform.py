"""Values that Python code gives for options, checked and converted as the command line converts its words."""

from __future__ import annotations

import numbers
import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from routed_rl.errors import UserError
from routed_rl.wording import did_you_mean

SCALARS: Mapping[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a string"),
    Path: ((str, os.PathLike), "a path"),
}
"""For each type of an option: what is accepted for it, and what an error calls it."""


def conform(options: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values of the types that a dataclass of options declares: lists become tuples, 1 becomes 1.0.

    So an object in Python and a command have equal options, and with them equal directories.

    Raises:
        UserError: for the first value of another type, or that is not one of the choices.
    """
    hints = get_type_hints(options)
    return {name: _conform(hints[name], value, f"{prefix}{name}") for name, value in values.items()}


def _conform(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        if value == "None":  # which a study's processes would read as None
            raise UserError(f"{name} must not be the text 'None': give None for no value, or another text")
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _conform(hint, value, name)
    if origin is Literal:
        if value not in arguments:
            nearest = did_you_mean(value, map(str, arguments)) if isinstance(value, str) else ""
            raise UserError(f"{name} must be one of {', '.join(map(repr, arguments))}, got {value!r}{nearest}")
        return value
    if origin is tuple:
        if isinstance(value, str) and arguments[0] is str:
            value = (value,)
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise UserError(f"{name} must be a list, got {value!r}")
        return tuple(_conform(arguments[0], one, name) for one in value)
    if is_dataclass(hint):
        if not isinstance(value, hint):  # type: ignore[arg-type]
            raise UserError(f"{name} must be a {hint.__name__}(…) of {hint.__module__}, got {value!r}")  # type: ignore[union-attr]
        return replace(value, **conform(hint, vars(value), f"{name}."))  # type: ignore[arg-type, type-var]
    accepted, what = SCALARS[hint]
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{name} must be {what}, got {value!r}")
    return hint(value)
