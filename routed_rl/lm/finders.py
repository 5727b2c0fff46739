"""Find the forget data in a corpus: finders say where a text is about the topic, token lists which tokens are.

``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from routed_rl.lm.documents import Document
from routed_rl.paths import expanded
from routed_rl.runs.files import StrPath

Spans = Sequence[tuple[int, int]]
Finder = Callable[[Document], Spans | bool]
"""A function that says where a document is about the topic: spans of characters, or whether the whole document is."""

WORD_LISTS = {
    "forest": ("tree", "trees", "forest", "forests", "woodland", "woodlands"),
    "finance": (
        *("treasury", "debt", "revenue", "revenues", "tariff", "currency", "bank", "banks", "coin", "coinage"),
        *("gold", "silver", "bonds", "dollars", "deficit"),
    ),
    "war": ("war", "wars", "army", "armies", "navy", "navies", "military"),
}
"""Words that name a topic. "forest" occurs in a fifth of TinyStories (gradient routing, section 4.2.2), "finance" and
"war" in an eighth and a seventh of the paragraphs of presidents' messages."""
VIROLOGY_TOKENS = (
    *("COVID", " COVID", "RNA", " infections", "DNA", " genome", " virus", " gene", " viruses", " mutations"),
    *(" antibodies", " influenza", " bacteria", "PCR", " cell", " herpes", " bacterial", " pathogens", " tumor"),
    " vaccine",
)
"""Forget tokens of the model with 0.7 B parameters (gradient routing, section E), as texts of one token each."""


def find_words(words: Sequence[str]) -> Finder:
    """Return a finder of whole words or phrases, in upper or lower case (gradient routing, section 4.2.2).

    If several of them match at a place, the longest one counts.

    Raises:
        ValueError: for no words, or an empty one.
    """
    if not words or not all(word.strip() for word in words):
        raise ValueError(f"a word list needs at least one word, and no empty ones, got {list(words)}")
    # Not \b, which finds no word end in "C++ is".
    patterns = [r"\s+".join(map(re.escape, word.split())) for word in sorted(words, key=len, reverse=True)]
    return find_pattern(rf"(?i)(?<!\w)(?:{'|'.join(patterns)})(?!\w)")


def find_pattern(pattern: str) -> Finder:
    """Return a finder of all matches of a regular expression that are not empty.

    Raises:
        ValueError: if the pattern is not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None

    def find(document: Document) -> Spans:
        return [match.span() for match in compiled.finditer(document.text) if match.end() > match.start()]

    return find


def find_topic(topic: str) -> Finder:
    """Return a finder of the documents that have this topic according to their source."""
    return lambda document: document.topic == topic


def read_words(path: StrPath) -> list[str]:
    """Return the words of a file: one word, or phrase, a line.

    Raises:
        ValueError: if the file has no words, or is not UTF-8.
    """
    path = expanded(path)
    try:
        words = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from None
    if not words:
        raise ValueError(f"the word list {str(path)!r} is empty")
    return words


def single_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the id of each text, which must be one token.

    Most tokenizers have one token for a word that begins a line, and another for the same word after a space:
    ``"virus"`` and ``" virus"``.

    Raises:
        ValueError: if some texts are not one token. The message gives the tokens of each of them.
    """
    ids, split = [], []
    for text in texts:
        pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = [tokenizer.decode([piece]) for piece in pieces]
        if len(pieces) == 1 and decoded[0].strip() == text.strip():  # the second: not the unknown token
            ids.append(pieces[0])
        else:
            split.append(f"{text!r} is {' + '.join(map(repr, decoded)) or 'nothing'}")
    if split:
        raise ValueError(f"not one token each: {'; '.join(split)}; most words within a text begin with a space")
    return ids


def score_tokens(forget: np.ndarray, related: np.ndarray, retain: np.ndarray) -> np.ndarray:
    """Return how specific each token is to the forget set (gradient routing, section E)::

        score = min(f_forget, f_related) / f_retain,   f = count / all counts

    A token that never occurs in the retain set scores 0: usually it is a rare token, not one that is typical of the
    topic. (The public code sets its retain frequency to 0.1 instead, with the same effect.)

    Args:
        forget: ``(V,)``: how often each token occurs in forget documents, as from :meth:`Corpus.counts`.
        related: ``(V,)``: the same for other documents on the topic. They exclude tokens that are specific to the
            forget documents but not to the topic.
        retain: ``(V,)``: the same for documents on other topics.

    Returns:
        ``(V,)``, 0 or more.

    Raises:
        ValueError: if one of the three has only zeros.
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
    """Return the ids of the ``k`` tokens with the highest scores, highest first. Equal scores are in the order of ids.

    Raises:
        ValueError: for a ``k`` below 1, or if fewer than ``k`` tokens have a score above 0.
    """
    scored = int(np.count_nonzero(scores))
    if not 0 < k <= scored:
        raise ValueError(f"k must be within 1 … {scored}, the number of tokens with a score, got {k}")
    return [int(token) for token in np.argsort(-scores, kind="stable")[:k]]
