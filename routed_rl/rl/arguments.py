"""Checks of constructor arguments: what passes them does not fail later, in training or in ``save``."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from routed_rl.wording import did_you_mean

UNUSED: dict[str, Any] = {
    "rollout_buffer_class": None,
    "rollout_buffer_kwargs": None,
}
"""Argument of Stable-Baselines3's algorithms that ours do not have → the only value that it may be given."""


def check_unused(owner: str, given: Mapping[str, object], *takers: Callable[..., Any]) -> None:
    """Raise a ValueError that names the first argument that ``owner`` does not have, except for :data:`UNUSED` ones.

    Args:
        owner: what got the arguments.
        given: arguments that none of ``takers`` takes.
        takers: functions or classes, of whose arguments the error names the nearest.
    """
    for name, value in given.items():
        if name not in UNUSED:
            _refuse(owner, name, value, _names(takers))
        if value != UNUSED[name]:
            _refuse(owner, name, value, ())


def check_known(
    owner: str, given: Mapping[str, object], taker: Callable[..., Any], *others: Callable[..., Any]
) -> None:
    """Raise a ValueError that names the first argument that ``taker``, a function or class, does not take by its name.

    The error suggests the nearest argument of ``taker`` or ``others``.
    """
    kinds = {parameter.kind for parameter in _parameters(taker)}
    unknown = [] if inspect.Parameter.VAR_KEYWORD in kinds else [name for name in given if name not in _names([taker])]
    for name in unknown:
        _refuse(owner, name, given[name], _names([taker, *others]))


def _names(takers: Sequence[Callable[..., Any]]) -> list[str]:
    """Return the names of all arguments that may be passed by name, except ``self`` and those with an underscore."""
    parameters = [parameter for taker in takers for parameter in _parameters(taker)]
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = (parameter.name for parameter in parameters if parameter.kind in by_name)
    return sorted({name for name in names if name != "self" and not name.startswith("_")})


def _parameters(taker: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    # Not the signature of a class: it may be that of a __new__ which takes anything.
    function = taker.__init__ if isinstance(taker, type) else taker  # type: ignore[misc]
    return list(inspect.signature(function).parameters.values())


def _refuse(owner: str, name: str, value: object, known: Sequence[str]) -> NoReturn:
    advice = did_you_mean(name, known) or ": leave it out"
    raise ValueError(f"{owner} has no argument {name}, got {' '.join(repr(value).split())}{advice}")


def check_number(low: float, high: float = float("inf"), /, **given: object) -> None:
    """Raise a ValueError that names the argument, unless every value is a finite number within low … high."""
    for name, value in given.items():
        _check(name, value, value, low, high, numbers.Real, "a finite number")


def check_whole(low: int, high: float = float("inf"), /, **given: object) -> None:
    """Raise a ValueError that names the argument, unless every value is an integer within low … high."""
    for name, value in given.items():
        _check(name, value, value, low, high, numbers.Integral, "an integer")


def check_schedule(low: float, /, **given: object) -> None:
    """Raise a ValueError that names the argument, unless every value is a finite number of at least ``low``.

    A value may also be a function of the remaining progress. Then its values at the start and at the end are checked.
    """
    for name, value in given.items():
        for number in (value(1.0), value(0.0)) if callable(value) else (value,):
            _check(name, value, number, low, float("inf"), numbers.Real, "a finite number, or a schedule of these")


def check_choice(choices: Sequence[object], /, **given: object) -> None:
    """Raise a ValueError that names the argument, unless every value is one of ``choices``, and of the same type."""
    for name, value in given.items():
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_type(kinds: tuple[type, ...], wanted: str, /, **given: object) -> None:
    """Raise a ValueError that names the argument and says what is ``wanted``, unless every value is of these types."""
    for name, value in given.items():
        if not isinstance(value, kinds):
            raise ValueError(f"{name} must be {wanted}, got {' '.join(repr(value).split())}")


def check_device(device: object) -> None:
    """Raise a ValueError unless ``device`` is ``"auto"`` or a device that torch knows."""
    try:
        if device != "auto":
            torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or another device of torch, got {device!r}") from error


def _check(name: str, given: object, number: object, low: float, high: float, kind: type, wanted: str) -> None:
    # The comparisons are false for NaN. The finite limit refuses infinity, which "at least" alone would accept.
    fits = isinstance(number, kind) and not isinstance(number, bool)
    if not fits or not (low <= number <= high and number < float("inf")):  # type: ignore[operator]
        bounds = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        value = f"{given!r}" if number is given else f"{number!r} from {given!r}"
        raise ValueError(f"{name} must be {wanted}, {bounds}, got {value}")
