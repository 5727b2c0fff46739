"""Values of options, checked and converted: as Python code gives them, and as the command line has read them."""

from __future__ import annotations

import numbers
import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from routed_rl.errors import UserError
from routed_rl.own_modules import located, name_of
from routed_rl.paths import NameOrPath, expanded
from routed_rl.plugins import PluginName
from routed_rl.wording import did_you_mean

SCALARS: Mapping[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a string"),
    Path: ((str, os.PathLike), "a path"),
}
"""For each type of an option: what is accepted for it, and what an error calls it."""
NONE = ("None", "none", "NONE")
"""How the command line says that there is no value."""


def conform(options: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values of the types that a dataclass of options declares: lists become tuples, 1 becomes 1.0.

    So an object in Python and a command have equal options, and with them equal directories. A ``~`` at the start of a
    path becomes the home directory. The name of a plug-in gets the folder of its module, because a study's processes
    look in no working directory. A class becomes its name.

    Raises:
        UserError: for the first value of another type, or that is not one of the choices.
    """
    hints = get_type_hints(options, include_extras=True)
    return {name: _conform(hints[name], value, f"{prefix}{name}") for name, value in values.items()}


def _conform(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        if value == "None":  # which a study's processes would read as None
            raise UserError(f"{name} must not be the text 'None': give None for no value, or another text")
        *choices, hint = (argument for argument in arguments if argument is not type(None))
        if any(value in get_args(choice) for choice in choices):
            return value
        return _conform(hint, value, name)
    if origin is Literal:
        if value not in arguments:
            nearest = did_you_mean(value, map(str, arguments)) if isinstance(value, str) else ""
            raise UserError(f"{name} must be one of {', '.join(map(repr, arguments))}, got {value!r}{nearest}")
        return value
    if hint == PluginName:
        return _plugin(value, name)
    if hint == NameOrPath:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        return os.path.expanduser(_conform(str, text, name))
    if origin is Annotated:
        return _conform(arguments[0], value, name)
    if origin is tuple:
        if isinstance(value, str | type) and arguments[0] in (str, PluginName):
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
    return expanded(value) if hint is Path else hint(value)


def _plugin(value: Any, name: str) -> str:
    if isinstance(value, type):
        try:
            return name_of(value)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    if not isinstance(value, str):
        raise UserError(f"{name} must be a name, MODULE:NAME or a class, got {value!r}")
    return located(value)


def from_text(hint: Any, text: str) -> Any:
    """Return a text as a value of a type for which :func:`takes_text` is true. A choice that is unknown stays a text.

    Raises:
        ValueError: for a text that is no such value; the message is what was expected.
    """
    if type(None) in _alternatives(hint) and text in NONE:
        return None
    (kind,) = _alternatives(hint, none=False)
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(SCALARS[bool][1])
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(SCALARS[kind][1]) from None


def takes_text(hint: Any) -> bool:
    """Whether a text can say a value of this type: a scalar or a choice, or None instead."""
    kinds = _alternatives(hint, none=False)
    return len(kinds) == 1 and (get_origin(kinds[0]) is Literal or kinds[0] in SCALARS)


def _alternatives(hint: Any, none: bool = True) -> list[Any]:
    """Return the types of a union, or the one type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [kind for kind in kinds if none or kind is not type(None)]
