"""Compare texts as a reader sees them. One letter with an accent can be one character or two: é, or e and an accent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from unicodedata import combining, normalize


def check_unicode(text: str, where: str) -> None:
    """Raise ValueError, which begins with ``where``, for a text with half of a surrogate pair.

    JSON can hold one, and Python reads a byte as one where the command line is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(f"{where}: the text is not Unicode: {half!r} is half of a surrogate pair") from None


def composed(text: str) -> str:
    """Return the text with each letter and its accents as few characters as possible (Unicode's form NFC)."""
    return normalize("NFC", text)


def original_spans(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return where spans of characters of ``composed(text)`` are in ``text``. They hold whole letters there."""
    if not spans or composed(text) == text:
        return list(spans)
    places = [(begin, end) for begin, end in _parts(text) for _ in composed(text[begin:end])]
    return [(places[begin][0], places[end - 1][1]) for begin, end in spans]


def _parts(text: str) -> Iterator[tuple[int, int]]:
    """Yield the smallest parts of a text that can be composed on their own, as spans."""
    begin = 0
    for i in range(1, len(text)):
        # A mark belongs to the letter before it, and so do some letters, such as the vowel of a Korean syllable.
        is_mark = combining(normalize("NFD", text[i])[0])
        if not is_mark and composed(text[begin : i + 1]) == composed(text[begin:i]) + composed(text[i]):
            yield begin, i
            begin = i
    yield begin, len(text)
