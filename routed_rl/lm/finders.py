"""What in a corpus is to be forgotten: a finder says where in a text the topic is, a list of tokens which ones are it.

``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from routed_rl.lm.documents import Document

Spans = Sequence[tuple[int, int]]
Finder = Callable[[Document], Spans | bool]
"""Where a document is about the topic: spans of characters, or whether all of it is."""

WORD_LISTS = {
    "forest": ("tree", "trees", "forest", "forests", "woodland", "woodlands"),
    "finance": (
        *("treasury", "debt", "revenue", "revenues", "tariff", "currency", "bank", "banks", "coin", "coinage"),
        *("gold", "silver", "bonds", "dollars", "deficit"),
    ),
    "war": ("war", "wars", "army", "armies", "navy", "navies", "military"),
}
"""Topics by the words that name them: of TinyStories (gradient routing, section 4.2.2), in a fifth of its stories, and
of presidents' messages, in an eighth and a seventh of their paragraphs."""
VIROLOGY_TOKENS = (
    *("COVID", " COVID", "RNA", " infections", "DNA", " genome", " virus", " gene", " viruses", " mutations"),
    *(" antibodies", " influenza", " bacteria", "PCR", " cell", " herpes", " bacterial", " pathogens", " tumor"),
    " vaccine",
)
"""What the model of 0.7 B parameters was made to forget (gradient routing, section E), as texts of one token each."""


def find_words(words: Sequence[str]) -> Finder:
    """Whole words, or phrases, in upper or lower case (gradient routing, section 4.2.2), of which the longest counts.

    Raises:
        ValueError: for no words, or an empty one.
    """
    if not words or not all(word.strip() for word in words):
        raise ValueError(f"a word list needs at least one word, and no empty ones, got {list(words)}")
    # Not \b, which finds no end in "C++ is".
    patterns = [r"\s+".join(map(re.escape, word.split())) for word in sorted(words, key=len, reverse=True)]
    return find_pattern(rf"(?i)(?<!\w)(?:{'|'.join(patterns)})(?!\w)")


def find_pattern(pattern: str) -> Finder:
    """What a regular expression matches, but for empty matches; ValueError if it is none."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None

    def find(document: Document) -> Spans:
        return [match.span() for match in compiled.finditer(document.text) if match.end() > match.start()]

    return find


def find_topic(topic: str) -> Finder:
    """All of the documents whose source says that this is their topic."""
    return lambda document: document.topic == topic


def read_words(path: Path) -> list[str]:
    """A word list: one word, or phrase, a line; ValueError if there is none in the file, or it is not UTF-8."""
    try:
        words = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from None
    if not words:
        raise ValueError(f"the word list {str(path)!r} is empty")
    return words


def single_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The id of each text that is one token. Most tokenizers have one token for a word that begins a line, and another
    for the same word after a space: ``"virus"`` and ``" virus"``.

    Raises:
        ValueError: naming all those that are not one token, and what they are split into.
    """
    ids, split = [], []
    for text in texts:
        pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = [tokenizer.decode([piece]) for piece in pieces]
        if len(pieces) == 1 and decoded[0].strip() == text.strip():  # not the token for what is unknown
            ids.append(pieces[0])
        else:
            split.append(f"{text!r} is {' + '.join(map(repr, decoded)) or 'nothing'}")
    if split:
        raise ValueError(f"not one token each: {'; '.join(split)}; words within a text often begin with a space")
    return ids


def score_tokens(forget: np.ndarray, related: np.ndarray, retain: np.ndarray) -> np.ndarray:
    """How peculiar each token is to what is to be forgotten (gradient routing, section E)::

        score = min(f_forget, f_related) / f_retain,   f = count / all counts

    A token that is never in the texts to retain scores 0: it is rare, more often than it is typical. (The public code
    has a frequency of 0.1 for it there, to the same end.)

    Args:
        forget: ``(V,)``, how often each token is in documents to be forgotten, as from :meth:`Corpus.counts`.
        related: ``(V,)``, and in other documents on the topic, which keep out what is peculiar to the first.
        retain: ``(V,)``, and in documents on other things.

    Returns:
        ``(V,)``, 0 or more.

    Raises:
        ValueError: if one of them counts nothing.
    """
    frequency = {}
    for name, counts in (("forget", forget), ("related", related), ("retain", retain)):
        if not counts.sum():
            raise ValueError(f"the {name} counts are all zero")
        frequency[name] = counts / counts.sum()
    seen = retain > 0
    peculiar = np.minimum(frequency["forget"], frequency["related"])
    return np.divide(peculiar, frequency["retain"], out=np.zeros(len(seen)), where=seen)


def top_tokens(scores: np.ndarray, k: int) -> list[int]:
    """The ids of the ``k`` tokens with the highest scores, the highest first; of equal ones the lower id first.

    Raises:
        ValueError: if fewer than ``k`` have a score at all.
    """
    scored = int(np.count_nonzero(scores))
    if not 0 < k <= scored:
        raise ValueError(f"{scored} tokens have a score, so between 1 and {scored} can be taken, not {k}")
    return [int(token) for token in np.argsort(-scores, kind="stable")[:k]]
