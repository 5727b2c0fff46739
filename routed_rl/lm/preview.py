"""Look at a corpus before anything is trained on it: how much there is, what was matched, what a model will see."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from routed_rl.lm.corpora import Corpus, Kind, Split
from routed_rl.lm.documents import Document
from routed_rl.lm.finders import Finder
from routed_rl.lm.unicode import composed

READ = 2000
"""Forget documents, at most, in which matches are counted."""


@dataclass(frozen=True)
class Example:
    """A document as a model sees it.

    Attributes:
        number: of the document in the corpus.
        kind: "forget" or "retain".
        tokens: the text of each token.
        scored, forget: for each token, whether it counts in a loss, and whether it is a forget token.
    """

    number: int
    kind: Kind
    tokens: tuple[str, ...]
    scored: tuple[bool, ...]
    forget: tuple[bool, ...]


@dataclass(frozen=True)
class Preview:
    """What :func:`preview` found.

    Attributes:
        counts: a row for each split and set: documents, tokens, scored tokens (they count in a loss), and the lengths
            of the shortest, the median and the longest document, in tokens.
        overlap: how many texts are in both sets.
        special: how often the texts themselves write each special token, which is a control token in the corpus.
        matches: how many forget documents have each text that the finder matched. The most frequent ones come first.
            Empty: without a finder of words.
        examples: some documents.
    """

    counts: pd.DataFrame
    overlap: int
    special: Mapping[str, int]
    matches: dict[str, int]
    examples: tuple[Example, ...]


def preview(corpus: Corpus, tokenizer: Any, finder: Finder | None = None, examples: int = 5, seed: int = 0) -> Preview:
    """Return what a corpus holds, with some of its documents, drawn at random from both sets in turn.

    Args:
        tokenizer: the one that made the corpus.
        finder: the one that found the forget set, if it finds words or patterns. It is run on the first 2,000 forget
            documents, as they are in the corpus.
        examples: how many documents.
        seed: fixes the choice of documents.
    """
    chance = np.random.default_rng(seed)
    numbers = {kind: np.flatnonzero(corpus.to_forget == (kind == "forget")) for kind in ("forget", "retain")}
    drawn = {kind: chance.permutation(of)[:examples] for kind, of in numbers.items()}
    turns = [int(pair[i]) for pair in zip(*_filled(drawn.values()), strict=True) for i in range(2) if pair[i] >= 0]
    return Preview(
        pd.DataFrame([_counts(corpus, split, kind) for split in ("train", "validation") for kind in numbers]),
        corpus.overlap,
        corpus.special,
        {} if finder is None else _matches(corpus, tokenizer, finder, numbers["forget"][:READ]),
        tuple(_example(corpus, tokenizer, number) for number in turns[:examples]),
    )


def _filled(arrays: Any) -> list[np.ndarray]:
    """Arrays of one length, filled with -1."""
    arrays = list(arrays)
    length = max(map(len, arrays))
    return [np.pad(array, (0, length - len(array)), constant_values=-1) for array in arrays]


def _counts(corpus: Corpus, split: Split, kind: str) -> dict[str, Any]:
    chosen = (corpus.validation == (split == "validation")) & (corpus.to_forget == (kind == "forget"))
    lengths = np.diff(corpus.starts)[chosen]
    scored = lengths.sum() - len(lengths)
    if corpus.scored is not None:
        counted = np.add.reduceat(corpus.scored, corpus.starts[:-1]) - corpus.scored[corpus.starts[:-1]]
        scored = counted[chosen].sum()
    some = lengths if len(lengths) else np.zeros(1, dtype=int)
    return {
        "split": split,
        "set": kind,
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "scored": int(scored),
        "shortest": int(some.min()),
        "median": int(np.median(some)),
        "longest": int(some.max()),
    }


def _matches(corpus: Corpus, tokenizer: Any, finder: Finder, documents: Sequence[int] | np.ndarray) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for number in documents:
        tokens = corpus.tokens[corpus.starts[number] : corpus.starts[number + 1]]
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        found = finder(Document(text))
        if not isinstance(found, (bool, np.bool_)):
            counts.update({composed(text[begin:end]).lower() for begin, end in found})
    return dict(counts.most_common())


def _example(corpus: Corpus, tokenizer: Any, number: int) -> Example:
    part = slice(corpus.starts[number], corpus.starts[number + 1])
    tokens, forget = corpus.tokens[part], corpus.forget[part]
    scored = np.ones(len(tokens), dtype=bool) if corpus.scored is None else np.array(corpus.scored[part])
    scored[:1] = False  # no token is before it
    return Example(
        number,
        "forget" if forget.any() else "retain",
        _pieces(tokenizer, tokens.tolist()),
        tuple(map(bool, scored)),
        tuple(map(bool, forget)),
    )


def _pieces(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, ...]:
    """Return the text of each token, with the space that the tokenizer writes before it, if any."""
    first = [tokenizer.decode([tokens[0]])] if tokens else []
    pairs = itertools.pairwise(tokens)
    return (*first, *(tokenizer.decode([*pair])[len(tokenizer.decode([pair[0]])) :] for pair in pairs))
