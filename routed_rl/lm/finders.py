"""What in a corpus is to be forgotten: a finder says where in a text the topic is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from routed_rl.lm.documents import Document

Spans = Sequence[tuple[int, int]]
Finder = Callable[[Document], Spans | bool]
"""Where a document is about the topic: spans of characters, or whether all of it is."""


def find_words(words: Sequence[str]) -> Finder:
    """Whole words, in upper or lower case (gradient routing, section 4.2.2); ValueError for no words."""
    if not words or not all(word.strip() for word in words):
        raise ValueError(f"a word list needs at least one word, and no empty ones, got {list(words)}")
    return find_pattern(rf"(?i)\b(?:{'|'.join(re.escape(word.strip()) for word in words)})\b")


def find_pattern(pattern: str) -> Finder:
    """What a regular expression matches; ValueError if it is none, or matches nothing at all everywhere."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None

    def find(document: Document) -> Spans:
        return [match.span() for match in compiled.finditer(document.text) if match.end() > match.start()]

    return find


def find_topic(topic: str) -> Finder:
    """All of the documents whose source says that this is their topic."""
    return lambda document: document.topic == topic


def read_words(path: Path) -> list[str]:
    """A word list: one word, or phrase, a line; ValueError if there is none in the file."""
    words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not words:
        raise ValueError(f"the word list {str(path)!r} is empty")
    return words
