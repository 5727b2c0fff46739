"""Telling a user's mistake from a bug."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in what the user passed; its text is shown as one line, without traceback."""


@contextmanager
def user_input() -> Iterator[None]:
    """Around code that only checks and opens what the user passed: its complaints are the user's to read."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def at_least(low: int, **options: int) -> None:
    """UserError, naming the option, unless every number is at least ``low``."""
    for name, number in options.items():
        if number < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}, got {number}")
