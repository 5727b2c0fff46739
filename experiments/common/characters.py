"""Output in any encoding: a terminal that knows ASCII alone gets words for the characters that it does not have."""

from __future__ import annotations

import codecs
import io
import sys

SUBSTITUTES = {"±": "+-", "–": "-", "…": "...", "×": "x", "·": ".", "•": "*", "α": "alpha", "β": "beta", "←": "<-",
               "→": "->", "─": "-", "│": "|",
               **dict.fromkeys("┌┐└┘", "+")}  # fmt: skip
"""What stands for a character. Any other becomes its number, as ``\\xe9``."""


def _substitute(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = "".join(SUBSTITUTES.get(character) or ascii(character)[1:-1] for character in text)
    return shown, error.end


codecs.register_error("routed-rl", _substitute)


def print_in_any_encoding() -> None:
    """Let no character that standard output cannot show end the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="routed-rl")


def printable(text: str) -> str:
    """Return a text as standard output shows it, so that its width is known."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "routed-rl").decode(encoding)
