"""Texts, a tokenizer and corpora for tests."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from routed_rl.lm.corpora import Corpus, build_corpus
from routed_rl.lm.documents import Document
from routed_rl.lm.finders import Finder, find_words
from routed_rl.lm.tokenizers import train_tokenizer

WORDS = (
    "war",
    "WARS",
    "Navy",
    "warp",
    "post-war",
    "peace",
    "tree",
    "a",
    "of",
    "naïve",
    "東京",
    "😀",
    "the army",
    "cat's",
)
RARE = 0.05
"""Probability that a word is one of the first three."""


def random_documents(n: int, seed: int, words: int = 12) -> Iterator[Document]:
    """Yield unique documents of words, some not in Latin letters, separated by spaces, line ends or punctuation."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        first = rng.random(words) < RARE
        chosen = np.where(first, rng.integers(0, 3, words), rng.integers(3, len(WORDS), words))
        between = rng.choice([" ", "  ", ", ", "\n", "-"], words)
        text = "".join(WORDS[word] + gap for word, gap in zip(chosen, between, strict=True))
        yield Document(f"{text}{i}", "odd" if i % 2 else "even")


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on such documents: bytes, and their most frequent pairs."""
    return train_tokenizer(random_documents(200, seed=0), 320)


def corpus_of(lengths: Sequence[int], forget: np.ndarray | None = None, held_out: Sequence[int] = ()) -> Corpus:
    """Return a corpus of documents of these lengths. Every token is a different number: its place."""
    starts = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))])
    validation = np.isin(np.arange(len(lengths)), held_out)
    marks = np.zeros(starts[-1], dtype=bool) if forget is None else forget
    return Corpus(np.arange(starts[-1], dtype=np.uint32), marks, starts, validation, {})


def of_document(corpus: Corpus, values: np.ndarray, document: int) -> np.ndarray:
    """Return one document's part of an array over all tokens."""
    return values[corpus.starts[document] : corpus.starts[document + 1]]


DOCUMENTS = list(random_documents(300, seed=1))
WAR = find_words(["war", "navy"])


def build(path: Path, documents: object = DOCUMENTS, finder: Finder | None = WAR, **options: object) -> Corpus:
    return build_corpus(path / "corpus", documents, tokenizer(), finder, **options)


def texts_of(corpus: Corpus) -> list[str]:
    """Return the documents' texts, decoded without special tokens."""
    split = (of_document(corpus, corpus.tokens, i) for i in range(len(corpus.validation)))
    return [tokenizer().decode(tokens.tolist(), skip_special_tokens=True) for tokens in split]
