"""Corpora: documents tokenised once into arrays on disk, with the tokens that are to be forgotten marked.

``D`` documents, ``N`` tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from routed_rl.lm.documents import Document
from routed_rl.lm.finders import Finder, Spans
from routed_rl.routing import LabelNoise
from routed_rl.routing.labels import check_probability
from routed_rl.runs import derive_seed, read_json, write_json
from routed_rl.runs.files import JSON, temporary_beside

Kind = Literal["forget", "retain"]
Split = Literal["train", "validation"]
TOKENS, FORGET, STARTS, VALIDATION, ABOUT = "tokens.npy", "forget.npy", "starts.npy", "validation.npy", "corpus.json"
CHUNK = 1000
"""Documents tokenised at a time."""


@dataclass(frozen=True)
class Corpus:
    """Tokenised documents.

    Attributes:
        tokens: ``(N,)`` integers, one document after the other, each with a token that starts it.
        forget: ``(N,)`` bool: what is truly to be forgotten, all of a document's tokens or single ones.
        starts: ``(D + 1,)``: where documents begin, and the end.
        validation: ``(D,)`` bool: which documents are not trained on.
        about: what it was made from.
    """

    tokens: np.ndarray
    forget: np.ndarray
    starts: np.ndarray
    validation: np.ndarray
    about: Mapping[str, Any]

    @property
    def to_forget(self) -> np.ndarray:
        """``(D,)`` bool: which documents have something to forget."""
        return np.logical_or.reduceat(self.forget, self.starts[:-1])

    def documents(self, split: Split, kind: Kind | None = None) -> np.ndarray:
        """The numbers of a split's documents, of one kind or both.

        Raises:
            ValueError: if there are none.
        """
        chosen = self.validation == (split == "validation")
        if kind is not None:
            chosen = chosen & (self.to_forget == (kind == "forget"))
        (found,) = np.nonzero(chosen)
        if not len(found):
            raise ValueError(
                f"the corpus has no {kind or ''} documents in its {split} split, of {len(self.validation)} in all: "
                "take more documents, another word list, or another share for validation"
            )
        return found

    def labelled(self, share: float, noise: LabelNoise | None = None, seed: int = 0) -> np.ndarray:
        """``(D,)`` bool: the documents that somebody has labelled as to be forgotten, each that is with probability
        ``share``. A larger share labels the same ones and more. Label noise comes first; a document that is labelled by
        mistake is so as a whole.

        Raises:
            ValueError: for a share that is not within 0 … 1.
        """
        check_probability("the labelled share", share)
        labels = self.to_forget.astype(np.int64)
        if noise is not None:
            labels = noise.apply(labels, 2, np.random.default_rng(derive_seed(seed, "label noise")))
        drawn = np.random.default_rng(derive_seed(seed, "labelled")).random(len(labels))
        return (labels == 1) & (drawn < share)

    def counts(self, documents: np.ndarray, vocabulary: int) -> np.ndarray:
        """``(vocabulary,)``: how often each token is in these documents; a document's first, which nobody predicts,
        does not count."""
        counts = np.zeros(vocabulary, dtype=np.int64)
        for document in documents:
            tokens = self.tokens[self.starts[document] + 1 : self.starts[document + 1]]
            np.add.at(counts, tokens, 1)
        return counts


def build_corpus(
    directory: Path,
    documents: Iterable[Document],
    tokenizer: Any,
    finder: Finder | None = None,
    *,
    per: Literal["document", "token"] = "document",
    forget_tokens: Sequence[int] = (),
    validation: float = 0.1,
    max_characters: int | None = None,
    max_tokens: int | None = None,
    about: Mapping[str, JSON] | None = None,
) -> Corpus:
    """Tokenise documents into a new directory, or open the corpus that is there.

    Args:
        documents: the texts, in an order that is always the same.
        tokenizer: of transformers; fast, if tokens are to be found by characters.
        finder: what is to be forgotten. With ``per="document"`` one mark makes all of a document so; with ``"token"``
            the tokens that overlap the marks are.
        forget_tokens: ids that are to be forgotten wherever they are, each by itself.
        validation: the share of documents not trained on, chosen by a hash of their text.
        max_characters: documents are cut to so many before anything is looked for.
        max_tokens: and to so many tokens afterwards.
        about: what the caller knows of the origin; a corpus of other origin in the directory is refused.

    Raises:
        ValueError: if nothing, or everything, is to be forgotten, if documents or a split are missing, or the directory
            holds another corpus.
        OSError: if the disk refuses; what was written is removed.
    """
    check_probability("the validation share", validation)
    identity = dict(about or {})
    if directory.exists():
        corpus = open_corpus(directory)
        if dict(corpus.about) != identity:
            raise ValueError(f"{str(directory)!r} holds another corpus, of {dict(corpus.about)}, not of {identity}")
        return corpus
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(directory)
    temporary.mkdir()
    try:
        _write(temporary, documents, tokenizer, finder, per, forget_tokens, validation, max_characters, max_tokens)
        write_json(temporary / ABOUT, identity)
        corpus = open_corpus(temporary)
        _check(corpus)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return open_corpus(directory)


def open_corpus(directory: Path) -> Corpus:
    """The corpus in a directory, its arrays mapped, not read; ValueError if there is none, or it is damaged."""
    try:
        tokens, forget, starts, validation = (
            np.load(directory / name, mmap_mode="r") for name in (TOKENS, FORGET, STARTS, VALIDATION)
        )
        corpus = Corpus(tokens, forget, starts, validation, read_json(directory / ABOUT))
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"there is no whole corpus in {str(directory)!r}: {error}") from None
    if len(corpus.forget) != len(corpus.tokens) or len(corpus.starts) != len(corpus.validation) + 1:
        raise ValueError(f"the corpus in {str(directory)!r} is damaged: its arrays do not fit one another")
    return corpus


def tokenizer_digest(tokenizer: Any) -> str:
    """10 hex digits of what a tokenizer does, for a corpus's identity."""
    serialised = getattr(tokenizer, "backend_tokenizer", None)
    text = serialised.to_str() if serialised is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _write(
    directory: Path,
    documents: Iterable[Document],
    tokenizer: Any,
    finder: Finder | None,
    per: str,
    forget_tokens: Sequence[int],
    validation: float,
    max_characters: int | None,
    max_tokens: int | None,
) -> None:
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ValueError("the tokenizer has neither a token that begins a text nor one that ends it")
    last = [tokenizer.eos_token_id] if tokenizer.eos_token_id not in (None, first) else []
    special = np.array(sorted(set(forget_tokens)), dtype=np.int64)
    lengths, held_out = [], []
    iterator = iter(documents)
    with (directory / "tokens").open("wb") as token_file, (directory / "forget").open("wb") as forget_file:
        while chunk := list(itertools.islice(iterator, CHUNK)):
            cut = [Document(document.text[:max_characters], document.topic) for document in chunk]
            encoded = tokenizer(
                [document.text for document in cut],
                add_special_tokens=False,
                return_offsets_mapping=finder is not None and per == "token",
                return_attention_mask=False,
                verbose=False,
            )
            for i, document in enumerate(cut):
                tokens = np.array([first, *encoded["input_ids"][i], *last], dtype=dtype)[:max_tokens]
                marks = np.isin(tokens, special)
                if finder is not None:
                    found = finder(document)
                    if per == "document":
                        marks |= bool(found)
                    else:
                        marks |= _overlapping(found, encoded["offset_mapping"][i], len(last))[:max_tokens]
                token_file.write(tokens.tobytes())
                forget_file.write(marks.tobytes())
                lengths.append(len(tokens))
                digest = hashlib.sha256(document.text.encode()).digest()
                held_out.append(int.from_bytes(digest[:8], "big") < validation * 2**64)
    if not lengths:
        raise ValueError("the corpus has no documents")
    total = sum(lengths)
    for name, kind in (("tokens", dtype), ("forget", np.bool_)):
        raw = np.memmap(directory / name, dtype=kind, mode="r", shape=(total,))  # type: ignore[call-overload]
        np.save(directory / f"{name}.npy", raw)
        (directory / name).unlink()
    np.save(directory / STARTS, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
    np.save(directory / VALIDATION, np.array(held_out))


def _overlapping(found: Spans | bool, offsets: Sequence[tuple[int, int]], last: int) -> np.ndarray:
    """``(tokens,)`` bool: which overlap what was found; the document's first and last tokens do not."""
    if isinstance(found, bool):
        return np.array([False, *[found] * len(offsets), *[False] * last])
    marks = [any(start < end and begin < stop for start, stop in found) for begin, end in offsets]
    return np.array([False, *marks, *[False] * last])


def _check(corpus: Corpus) -> None:
    share = corpus.to_forget.mean()
    if share in (0, 1):
        matched = "none" if share == 0 else "all"
        raise ValueError(
            f"{matched} of {len(corpus.validation)} documents have something to forget; look at the word list, pattern "
            "or tokens"
        )
    for split in ("train", "validation"):
        for kind in ("forget", "retain"):
            corpus.documents(split, kind)  # type: ignore[arg-type]
