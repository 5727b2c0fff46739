"""The user's own texts, as lists or datasets, and corpora of them in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from routed_rl.lm.corpora import Corpus, build_corpus
from routed_rl.lm.documents import SHAPES, Document, from_row
from routed_rl.lm.finders import find_topic, find_words
from routed_rl.lm.models import positions
from routed_rl.lm.unicode import check_unicode

Texts = Iterable[str] | Iterable[Mapping[str, Any]]
"""Documents: strings; or rows, as a ``datasets.Dataset`` has them, of a form of :func:`~routed_rl.lm.from_row`."""
LONGEST = 256
"""Tokens of the longest row that is chosen automatically."""


def text_corpus(tokenizer: Any, forget: Texts, retain: Texts, allow_overlap: bool = False) -> Corpus:
    """Return the forget set and the retain set, tokenised, as one corpus in memory. All of it is for training.

    Args:
        tokenizer: of transformers.
        forget, retain: the documents of each set.
        allow_overlap: accept texts that are in both sets.

    Raises:
        ValueError: for a set without documents, a document without text, one string in place of a list, or a text in
            both sets.
    """
    documents = chain(labelled_documents("forget", forget), labelled_documents("retain", retain))
    with tempfile.TemporaryDirectory() as folder:
        place, finder = Path(folder) / "corpus", find_topic("forget")
        found = build_corpus(place, documents, tokenizer, finder, validation=None, allow_overlap=allow_overlap)
        parts: dict[str, Any] = {field.name: getattr(found, field.name) for field in fields(found)}
        # Copies, because the folder and its files are deleted.
        parts |= {name: np.array(of) for name, of in parts.items() if isinstance(of, np.ndarray)}
        return Corpus(**parts)


def split_by_words(texts: Texts, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the texts that contain one of the words, and the others. Case does not count.

    >>> split_by_words(["The bank paid.", "A river bend."], ["bank"])
    (['The bank paid.'], ['A river bend.'])

    Raises:
        ValueError: as :func:`text_corpus`, or for a list of words that is empty.
    """
    find = find_words(words)
    found: tuple[list[str], list[str]] = ([], [])
    for document in labelled_documents("texts", texts):
        found[0 if find(document) else 1].append(document.text)
    return found


def row_length(corpus: Corpus, model: nn.Module) -> int:
    """Return the tokens of the longest document, or :data:`LONGEST` or the model's positions if one is less."""
    return min(int(np.diff(corpus.starts).max()), LONGEST, positions(model) or LONGEST)


def labelled_documents(name: str, texts: Texts) -> Iterator[Document]:
    """Yield texts as documents whose topic is ``name``; ValueError as :func:`text_corpus`."""
    if isinstance(texts, str):
        raise ValueError(f"{name} must be a list of documents, got one string: {texts[:40]!r}")
    none = True
    for i, row in enumerate(texts):
        if not isinstance(row, str | Mapping):
            raise ValueError(f"{name}[{i}] must be a text or a row with {SHAPES}, got {row!r}"[:300])
        document = Document(row) if isinstance(row, str) else from_row(row, where=f"{name}[{i}]")
        check_unicode(document.text, f"{name}[{i}]")
        if not document.text.strip():
            raise ValueError(f"{name}[{i}] is an empty text")
        none = False
        yield replace(document, topic=name)
    if none:
        raise ValueError(f"{name} has no documents")
