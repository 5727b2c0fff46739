"""Documents become tokens, each with two marks: whether it is a forget token, and whether it counts in a loss."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from routed_rl.lm.chat import rendered
from routed_rl.lm.documents import Document
from routed_rl.lm.finders import Finder, Spans
from routed_rl.lm.tokenizers import first_token, special_ids, unknown_id

CHUNK = 1000
"""Documents tokenised at a time."""


@dataclass(frozen=True, eq=False)
class Tokenised:
    """A document of ``N`` tokens.

    Attributes:
        text: after it was cut, with what a chat template writes.
        tokens: ``(N,)`` integers.
        forget, scored: ``(N,)`` bool: the forget tokens, and the tokens that count in a loss.
        special: the special tokens that the text itself writes, before a chat template adds its own.
    """

    text: str
    tokens: np.ndarray
    forget: np.ndarray
    scored: np.ndarray
    special: Sequence[str]


def tokenise(
    documents: Iterable[Document],
    tokenizer: Any,
    size: int,
    finder: Finder | None,
    per: str,
    forget_tokens: Sequence[int],
    score: str,
    max_characters: int | None,
    max_tokens: int | None,
) -> Iterator[Tokenised]:
    """Yield the documents, tokenised. The arguments are those of :func:`~routed_rl.lm.build_corpus`.

    Args:
        size: one more than the largest token of the tokenizer.
    """
    special, ordinary = np.zeros(size, dtype=bool), np.ones(size, dtype=bool)
    special[list(forget_tokens)] = True
    ordinary[special_ids(tokenizer)] = False
    first, last, unknown = first_token(tokenizer), tokenizer.eos_token_id, unknown_id(tokenizer)
    written = _special_tokens(tokenizer)
    iterator = iter(documents)
    while given := list(islice(iterator, CHUNK)):
        chunk = [rendered(document, tokenizer) for document in given]
        if score == "all":
            chunk = [replace(document, answers=None) for document in chunk]
        cut = [replace(document, text=document.text[:max_characters]) for document in chunk]
        located = any(document.answers is not None for document in cut) or (finder is not None and per == "token")
        if located and not tokenizer.is_fast:
            raise ValueError(f"answers need a fast tokenizer: {type(tokenizer).__name__} does not locate its tokens")
        encoded = tokenizer(
            [document.text for document in cut],
            add_special_tokens=False,
            return_offsets_mapping=located,
            return_attention_mask=False,
            verbose=False,
        )
        for i, document in enumerate(cut):
            text, answers, inner = document.text, document.answers, encoded["input_ids"][i]
            # A chat template writes BOS and EOS itself, and so may a text. (An unknown word is no BOS or EOS.)
            begin, end = ([] if token is None else [token] for token in (first, last))
            if inner[:1] == begin and first != unknown:
                begin = []
            is_cut = len(document.text) < len(chunk[i].text)
            if is_cut or document.messages is not None or (inner[-1:] == end and last != unknown):
                end = []
            if not begin and not inner and not end:
                continue
            tokens = np.array([*begin, *inner, *end], dtype=np.int64)
            marks, scored = special[tokens], np.full(len(tokens), answers is None)
            within = slice(len(begin), len(begin) + len(inner))
            found = False if finder is None else finder(document)
            if per == "document" or isinstance(found, (bool, np.bool_)):
                # EOS says that a text has ended, not what it is about: a model should not forget how to stop.
                marks[within] |= bool(found) & ordinary[inner]
            else:
                marks[within] |= _overlapping(found, encoded["offset_mapping"][i], len(text))
            if answers is not None:
                # A token reaches back to the one before it: some tokenizers leave white space out of both.
                places = encoded["offset_mapping"][i]
                ends = [0, *(end for _, end in places)]
                spans = [(min(a, before), b) for (a, b), before in zip(places, ends, strict=False)]
                scored[within] = _overlapping(answers, spans, len(text))
                scored[within.stop :] = bool(answers) and answers[-1][1] >= len(text)
            kept = slice(max_tokens)
            yield Tokenised(text, tokens[kept], marks[kept], scored[kept], written.findall(given[i].text))


def _overlapping(found: Spans, offsets: Sequence[tuple[int, int]], characters: int) -> np.ndarray:
    """Return ``(tokens,)`` bool: the tokens that share a character with a span that was found."""
    covered = np.zeros(characters, dtype=np.int64)
    for start, stop in found:
        covered[start:stop] = 1
    before = np.concatenate([[0], np.cumsum(covered)])
    begin, end = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    return before[end] > before[begin]


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return the pattern of the special tokens that a text can write, with the longest first."""
    ids = [] if tokenizer.split_special_tokens else special_ids(tokenizer)
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
