"""Checks of constructor arguments: what passes them does not fail later, in training or in ``save``."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch

UNUSED: dict[str, Any] = {
    "use_sde": False,
    "sde_sample_freq": -1,
    "rollout_buffer_class": None,
    "rollout_buffer_kwargs": None,
}
"""Argument of Stable-Baselines3's algorithms that ours do not have → the only value that it may be given."""


def check_unused(owner: str, given: Mapping[str, object]) -> None:
    """Raise a ValueError that names the first argument that ``owner`` does not have, except for :data:`UNUSED` ones."""
    for name, value in given.items():
        if name not in UNUSED or value != UNUSED[name]:
            raise ValueError(f"{owner} has no argument {name}, got {value!r}: leave it out")


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
