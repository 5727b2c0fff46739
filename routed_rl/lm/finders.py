"""Find the forget data in a corpus: finders say where a text is about the topic, token lists which tokens are.

``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import regex

from routed_rl.lm.documents import Document
from routed_rl.lm.reading import TEXT, read_list
from routed_rl.lm.unicode import check_unicode, composed, original_spans
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
UNSPACED = r"\p{lb=ID}\p{lb=SA}\p{lb=CJ}\p{lb=NS}"
"""Characters at which a line may break without a space (Unicode's classes): of Chinese, Japanese, Thai and others."""
IN_WORD = rf"(?:\p{{N}}|[^\W{UNSPACED}])"
"""A character that continues a word: a letter, mark, digit or underscore, but none of the above."""
BEGIN = rf"(?:(?=[{UNSPACED}])|(?<!{IN_WORD}))"
END = rf"(?!\p{{M}})(?:(?<=[{UNSPACED}])|(?!{IN_WORD}))"
"""Where a whole word begins and ends. (``\\b`` finds no end in "C++ is".)"""


def find_words(words: Sequence[str]) -> Finder:
    """Return a finder of whole words or phrases, in upper or lower case (gradient routing, section 4.2.2).

    If several of them match at a place, the longest one counts. Words of scripts without spaces between words, such as
    Chinese, Japanese or Thai, are found wherever their characters are.

    Raises:
        ValueError: for no words, an empty one, or one that is not Unicode.
    """
    if not words or not all(word.strip() for word in words):
        raise ValueError(f"a word list needs at least one word, and no empty ones, got {list(words)}")
    for word in words:
        check_unicode(word, f"the word {word!r}")
    ordered = sorted(map(composed, words), key=len, reverse=True)
    phrases = "|".join(r"\s+".join(map(regex.escape, word.split())) for word in ordered)
    return _finder(regex.compile(f"{BEGIN}(?:{phrases}){END}", regex.IGNORECASE))


def find_pattern(pattern: str) -> Finder:
    """Return a finder of all matches of a regular expression that are not empty.

    Pattern and text are compared with each letter and its accents as few characters as possible (Unicode's form NFC).

    Raises:
        ValueError: if the pattern is not a regular expression, or not Unicode.
    """
    check_unicode(pattern, f"the pattern {pattern!r}")
    try:
        return _finder(re.compile(composed(pattern)))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None


def _finder(pattern: Any) -> Finder:
    """Return a finder of all matches in the composed text that are not empty, at their places in the text."""

    def find(document: Document) -> Spans:
        matches = pattern.finditer(composed(document.text))
        return original_spans(document.text, [match.span() for match in matches if match.end() > match.start()])

    return find


def find_topic(topic: str) -> Finder:
    """Return a finder of the documents that have this topic according to their source."""
    return lambda document: document.topic is not None and composed(document.topic) == composed(topic)


def read_words(path: StrPath) -> list[str]:
    """Return the words of a file: one word, or phrase, a line.

    Raises:
        ValueError: if the file has no words, or is not UTF-8.
        OSError: if the file cannot be read.
    """
    return [word.strip() for word in read_list(path)]


LISTS: Mapping[str, tuple[Mapping[str, Sequence[str]], Callable[[str], Sequence[str]]]] = {
    "words": (WORD_LISTS, read_words),
    "tokens": ({"virology": VIROLOGY_TOKENS}, read_list),
}
"""Options that list words or tokens: their named lists, and the function that reads a file."""


def listed(name: str, given: Sequence[str]) -> Sequence[str]:
    """Return the words or tokens that an option of :data:`LISTS` gives, or those of a named list or a file.

    Raises:
        ValueError, OSError: as :func:`list_file`, or if the file cannot be read.
    """
    known, read = LISTS[name]
    if len(given) == 1 and given[0] in known:
        return known[given[0]]
    file = list_file(name, given)
    return given if file is None else read(file)


def list_file(name: str, given: Sequence[str]) -> str | None:
    """Return the file with words or tokens, if an option of :data:`LISTS` names one.

    Raises:
        ValueError: for the name of a text file that is not there.
    """
    if len(given) != 1 or given[0] in LISTS[name][0]:
        return None
    file = str(expanded(given[0]))
    if os.path.isfile(file):  # unlike Path's, this takes a name of any length
        return file
    if given[0].lower().endswith(TEXT):
        raise ValueError(f"--{name} {given[0]!r}: there is no such file")
    return None


def single_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the id of each text, which must be one token.

    Most tokenizers have one token for a word that begins a line, and another for the same word after a space:
    ``"virus"`` and ``" virus"``.

    Raises:
        ValueError: if some texts are not one token, or not Unicode. The message gives the tokens of each of them.
    """
    ids, split = [], []
    for text in texts:
        check_unicode(text, f"the token {text!r}")
        pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = [tokenizer.decode([piece]) for piece in pieces]
        # A tokenizer may compose accents. The unknown token has another text.
        if len(pieces) == 1 and composed(decoded[0].strip()) == composed(text.strip()):
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
