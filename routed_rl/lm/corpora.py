"""Corpora: documents tokenised once into arrays on disk, with their forget tokens marked.

``D`` documents, ``N`` tokens.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy

from routed_rl.errors import UserError
from routed_rl.lm.documents import Document
from routed_rl.lm.finders import Finder
from routed_rl.lm.tokenising import Tokenised, tokenise
from routed_rl.lm.tokenizers import tokenizer_digest
from routed_rl.lm.unicode import composed
from routed_rl.paths import expanded
from routed_rl.routing import LabelNoise, check_probability
from routed_rl.runs import derive_seed, read_json, write_json
from routed_rl.runs.files import JSON, StrPath, move_in, plain_json, sync, temporary_beside

Kind = Literal["forget", "retain"]
Split = Literal["train", "validation"]
TOKENS, FORGET, SCORED, STARTS, VALIDATION = "tokens.npy", "forget.npy", "scored.npy", "starts.npy", "validation.npy"
ABOUT = "corpus.json"
OVERLAP, SPECIAL = "overlap", "special"
"""What is counted while a corpus is built. It does not say which corpus it is."""
SHOWN = 60
"""Characters of a text that are kept to be shown in a message."""
FORMAT = 2
"""Number of the way in which documents become tokens. A corpus of an earlier format is not opened."""
CHUNK = 1000
"""Documents whose tokens are counted at a time."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised documents.

    Attributes:
        tokens: ``(N,)`` integers: the documents one after the other, each with the tokenizer's BOS and EOS, if any.
        forget: ``(N,)`` bool: the true forget tokens, before any labelling: all tokens of a document but BOS, EOS and
            those that a chat template writes, or single ones.
        starts: ``(D + 1,)``: where each document begins, and where the last one ends.
        validation: ``(D,)`` bool: the documents that are held out from training.
        about: what the corpus was made from, and how.
        scored: ``(N,)`` bool: the tokens that count in a loss, where only answers count. None: all tokens count. A
            document's first token never counts, because no token is before it.
    """

    tokens: np.ndarray
    forget: np.ndarray
    starts: np.ndarray
    validation: np.ndarray
    about: Mapping[str, Any]
    scored: np.ndarray | None = None

    @property
    def overlap(self) -> int:
        """How many texts are in the forget set and in the retain set, compared with white space collapsed."""
        return int(self.about.get(OVERLAP, 0))

    @property
    def special(self) -> Mapping[str, int]:
        """How often the texts themselves write each special token, which is a control token in the corpus."""
        return self.about.get(SPECIAL, {})

    @cached_property
    def to_forget(self) -> np.ndarray:
        """``(D,)`` bool: the forget documents, which have at least one forget token."""
        return np.logical_or.reduceat(self.forget, self.starts[:-1])

    def documents(self, split: Split, kind: Kind | None = None) -> np.ndarray:
        """Return the numbers of a split's documents: forget documents, retain documents, or both kinds (None).

        Raises:
            ValueError: if there are none.
        """
        chosen = self.validation == (split == "validation")
        if kind is not None:
            chosen = chosen & (self.to_forget == (kind == "forget"))
        (found,) = np.nonzero(chosen)
        if not len(found):
            wanted = "documents" if kind is None else f"{kind} documents"
            raise UserError(
                f"the corpus has no {wanted} in its {split} split, of {len(self.validation)} documents in all: take "
                "more documents, or another --validation share; in a .txt file, a blank line ends each document"
            )
        return found

    def labelled(self, share: float, noise: LabelNoise | None = None, seed: int = 0) -> np.ndarray:
        """Return ``(D,)`` bool: the documents with the label "forget".

        Each forget document gets the label with probability ``share``. A larger share labels the same documents, and
        more. Label noise is applied first. A document that is labelled by mistake is labelled as a whole.

        Raises:
            ValueError: for a share outside 0 … 1.
        """
        check_probability("the labelled share", share)
        labels = self.to_forget.astype(np.int64)
        if noise is not None:
            labels = noise.apply(labels, 2, np.random.default_rng(derive_seed(seed, "label noise")))
        drawn = np.random.default_rng(derive_seed(seed, "labelled")).random(len(labels))
        return (labels == 1) & (drawn < share)

    def has_targets(self, documents: np.ndarray) -> np.ndarray:
        """Return, for each of these documents, whether a token of it counts in a loss."""
        return self.has_target(self.starts[documents], self.starts[documents + 1])

    def has_target(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return, for each part of the tokens from ``begin`` to ``end``, whether a token after its first one counts."""
        if self.scored is None:
            return np.asarray(end - begin > 1)
        scored = self.scored
        return np.fromiter((scored[a + 1 : b].any() for a, b in zip(begin, end, strict=True)), bool, len(begin))

    def counts(self, documents: np.ndarray, vocabulary: int) -> np.ndarray:
        """Return ``(vocabulary,)``: how often each token is a scored target in these documents."""
        counts = np.zeros(vocabulary, dtype=np.int64)
        tokens = np.asarray(self.tokens)  # slicing an array is faster than slicing a memory map
        for i in range(0, len(documents), CHUNK):
            starts, ends = self.starts[documents[i : i + CHUNK]] + 1, self.starts[documents[i : i + CHUNK] + 1]
            parts = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
            chunk = np.concatenate([tokens[part] for part in parts])
            if self.scored is not None:
                chunk = chunk[np.concatenate([self.scored[part] for part in parts])]
            counts += np.bincount(chunk, minlength=vocabulary)
        return counts


def build_corpus(
    directory: StrPath,
    documents: Iterable[Document],
    tokenizer: Any,
    finder: Finder | None = None,
    *,
    per: Literal["document", "token"] = "document",
    forget_tokens: Sequence[int] = (),
    validation: float | None = 0.1,
    max_characters: int | None = None,
    max_tokens: int | None = None,
    score: Literal["answers", "all"] = "answers",
    allow_overlap: bool = False,
    about: Mapping[str, JSON] | None = None,
) -> Corpus:
    """Tokenise documents into a new directory and return the corpus, or open the corpus that is already there.

    Args:
        documents: the texts, always in the same order. They are read once and not kept in memory.
        tokenizer: of transformers. It must be a fast one if ``per`` is ``"token"``.
        finder: finds the forget data in a document.
        per: what one match marks: ``"document"``, all tokens of the document but BOS, EOS and a chat template's, so
            that a model does not forget how to stop; ``"token"``, the tokens that it overlaps.
        forget_tokens: ids of tokens that are forget tokens wherever they occur.
        validation: share of documents held out from training. A hash of a document's text decides. So the choice does
            not depend on the other documents, and is the same for equal texts, however their accents are encoded.
            None: all documents are for training.
        max_characters: each document is first cut to this many characters.
        max_tokens: each tokenised document is then cut to this many tokens.
        score: which tokens count in losses, where documents have answers: those of the answers, or all.
        allow_overlap: accept texts that are in the forget set and in the retain set. How many there are is in
            :attr:`Corpus.overlap`.
        about: facts about the documents and the finder, to recognise the corpus. A corpus that is already there is
            refused if its ``about``, or any argument above, differs. Documents and finder themselves are not compared.

    Warns:
        UserWarning: how many texts are in both sets, and how often texts write special tokens of the tokenizer. Only a
            corpus that is built now is said anything about.

    Raises:
        ValueError: if no document or every document is a forget document, if documents or a split are missing, if a
            text is in both sets, or if the directory holds something else.
        OSError: if writing fails. What was written is removed.
    """
    directory, share = expanded(directory), 0.0 if validation is None else validation
    check_probability("the validation share", share)
    for name, limit, least in (("max_characters", max_characters, 1), ("max_tokens", max_tokens, 2)):
        if limit is not None and limit < least:
            raise ValueError(f"{name} must be at least {least}, got {limit}")
    if finder is not None and per == "token" and not tokenizer.is_fast:
        raise ValueError(f"per='token' needs a fast tokenizer: {type(tokenizer).__name__} does not locate its tokens")
    size = max(tokenizer.get_vocab().values()) + 1
    if strangers := [token for token in forget_tokens if not 0 <= token < size]:
        raise ValueError(f"forget_tokens must be ids within 0 … {size - 1}, got {strangers}")
    how = {
        "format": FORMAT,
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "per": per,
        "forget_tokens": sorted({int(token) for token in forget_tokens}),
        "validation": None if validation is None else float(share),
        "max_characters": max_characters,
        "max_tokens": max_tokens,
        "score": score,
        "allow_overlap": allow_overlap,
    }
    identity = plain_json({**(about or {}), **how}, "about")
    if directory.exists():
        return _open_same(directory, identity)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(directory)
    temporary.mkdir()
    try:
        tokenised = tokenise(documents, tokenizer, size, finder, per, forget_tokens, score, max_characters, max_tokens)
        overlap, special = _write(temporary, tokenised, np.dtype(np.uint16 if size <= 2**16 else np.uint32), share)
        if overlap and not allow_overlap:
            raise ValueError(
                f"{_in_both(overlap)}: take them out of one set, or accept them with --allow-overlap "
                "(allow_overlap=True)"
            )
        write_json(temporary / ABOUT, {**identity, OVERLAP: len(overlap), SPECIAL: special})
        _check(open_corpus(temporary))
        for written in (*temporary.iterdir(), temporary):
            sync(written)
        move_in(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if overlap:
        warnings.warn(_in_both(overlap), stacklevel=2)
    if special:
        found = ", ".join(f"{token!r} {count}" for token, count in special.items())
        warnings.warn(
            f"the texts hold special tokens of the tokenizer, which become control tokens: {found}", stacklevel=2
        )
    return _open_same(directory, identity)


def open_corpus(directory: StrPath) -> Corpus:
    """Return the corpus in a directory. Its arrays are mapped into memory, not read.

    Raises:
        ValueError: if there is no corpus, or the corpus is damaged.
    """
    directory = expanded(directory)
    try:
        tokens, forget, starts, validation = (
            np.load(directory / name, mmap_mode="r") for name in (TOKENS, FORGET, STARTS, VALIDATION)
        )
        scored = np.load(directory / SCORED, mmap_mode="r") if (directory / SCORED).exists() else None
        corpus = Corpus(tokens, forget, starts, validation, read_json(directory / ABOUT), scored)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"there is no complete corpus in {str(directory)!r}: {error}") from None
    lengths = {len(tokens), len(forget), len(tokens if scored is None else scored), int(starts[-1])}
    if len(lengths) > 1 or len(starts) != len(validation) + 1:
        raise ValueError(f"the corpus in {str(directory)!r} is damaged: the lengths of its arrays do not match")
    return corpus


def _open_same(directory: Path, identity: Mapping[str, Any]) -> Corpus:
    corpus = open_corpus(directory)
    for key in sorted({*corpus.about, *identity} - {OVERLAP, SPECIAL}):
        there, wanted = corpus.about.get(key), identity.get(key)
        if there != wanted:
            raise ValueError(f"{str(directory)!r} holds another corpus: its {key} is {there!r}, not {wanted!r}")
    return corpus


def _write(
    directory: Path, documents: Iterable[Tokenised], dtype: np.dtype, validation: float
) -> tuple[list[str], dict[str, int]]:
    """Write the arrays of a corpus. Return the texts in both sets, and how often texts write each special token."""
    lengths, held_out, all_scored = [], [], True
    forgotten: dict[int, str] = {}
    retained = array("Q")
    special: Counter[str] = Counter()
    kinds = {TOKENS: dtype, FORGET: np.dtype(bool), SCORED: np.dtype(bool)}
    with ExitStack() as opened:
        files = [(opened.enter_context((directory / name).open("wb")), kind) for name, kind in kinds.items()]
        for file, kind in files:
            _write_header(file, kind, 0)
        for document in documents:
            text = composed(document.text)
            key = " ".join(text.split())
            number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
            if document.forget.any():
                forgotten[number] = key[:SHOWN]
            else:
                retained.append(number)
            arrays = (document.tokens, document.forget, document.scored)
            for (file, kind), values in zip(files, arrays, strict=True):
                file.write(values.astype(kind).tobytes())
            lengths.append(len(document.tokens))
            all_scored &= bool(document.scored.all())
            digest = hashlib.sha256(text.encode()).digest()
            held_out.append(int.from_bytes(digest[:8], "big") < validation * 2**64)
            special.update(document.special)
        if not lengths:
            raise ValueError("the corpus has no documents")
        for file, kind in files:
            file.seek(0)
            _write_header(file, kind, sum(lengths))
    if all_scored:
        (directory / SCORED).unlink()
    np.save(directory / STARTS, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
    np.save(directory / VALIDATION, np.array(held_out))
    both = np.isin(np.array(list(forgotten), dtype=np.uint64), np.array(retained, dtype=np.uint64))
    overlap = [text for text, is_both in zip(forgotten.values(), both, strict=True) if is_both]
    return overlap, dict(sorted(special.items()))


def _in_both(texts: Sequence[str]) -> str:
    many = f"{len(texts)} texts are" if len(texts) > 1 else "1 text is"
    return f"{many} in the forget set and in the retain set, for example {texts[0]!r}"


def _write_header(file: BinaryIO, dtype: np.dtype, length: int) -> None:
    """Write the header of an ``.npy`` file with one axis. numpy leaves room in it for a length that is known later."""
    description = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    npy.write_array_header_1_0(file, description)


def _check(corpus: Corpus) -> None:
    share = corpus.to_forget.mean()
    if share in (0, 1):
        matched = "none" if share == 0 else "all"
        raise ValueError(
            f"{matched} of {len(corpus.validation)} documents are forget documents: check the word list, pattern or "
            "tokens"
        )
    for split in ("train",) if corpus.about["validation"] is None else ("train", "validation"):
        for kind in ("forget", "retain"):
            if not corpus.has_targets(corpus.documents(split, kind)).any():  # type: ignore[arg-type]
                raise ValueError(
                    f"no token of the {kind} documents in the {split} split counts in a loss: cut documents later "
                    "(max_characters, max_tokens), or score all tokens"
                )
