"""Rows of a user's data, and what is wrong with them in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from routed_rl.errors import UserError
from routed_rl.lm.unicode import check_unicode


@dataclass(frozen=True)
class Fields:
    """A row, and where it is.

    Attributes:
        where: the file and the line, or the dataset and the row. Errors begin with it.
    """

    where: str
    row: Mapping[str, Any]

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text that is not blank. ``default``: what a row without the field has; None: this is an error.

        Raises:
            UserError: if the field is missing, is no text, or is blank.
        """
        value = self.row.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(f"needs a text in the field {name!r}")
        if name in self.row and not value.strip():
            raise self.wrong(f"has a blank text in the field {name!r}")
        check_unicode(value, self.where)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of different texts. A row without the field has none; a single text is a list of one.

        Raises:
            UserError: for anything else, a blank text, or a text that is there twice.
        """
        value = self.row.get(name)
        found = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) and one.strip() for one in found):
            raise self.wrong(f"needs a list of texts in the field {name!r}")
        if len(set(found)) < len(found):
            raise self.wrong(f"has a text twice in the field {name!r}")
        for one in found:
            check_unicode(one, self.where)
        return tuple(found)

    def index(self, name: str, count: int) -> int:
        """Return a number from 0 to below ``count``.

        Raises:
            UserError: for anything else.
        """
        value = self.row.get(name)
        if type(value) is not int or not 0 <= value < count:
            raise self.wrong(f"needs a number from 0 to {count - 1} in the field {name!r}")
        return value

    def wrong(self, what: str) -> UserError:
        """Return an error that says where the row is, what is wrong with it, and which fields it has."""
        kinds = {name: "null" if value is None else type(value).__name__ for name, value in self.row.items()}
        has = ", ".join(f"{name!r} ({kind})" for name, kind in kinds.items()) or "no fields"
        return UserError(f"{self.where}: the row {what}; it has {has}"[:400])
