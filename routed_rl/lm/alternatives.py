"""Alternative answers to forget questions, for suppression methods that teach another answer.

``B`` rows, ``F`` forget documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from routed_rl.errors import UserError
from routed_rl.lm.batches import Batch, Rows
from routed_rl.lm.corpora import Corpus
from routed_rl.lm.documents import Document
from routed_rl.lm.texts import Texts, labelled_documents
from routed_rl.lm.tokenising import tokenise
from routed_rl.runs import derive_seed
from routed_rl.wording import written

DONT_KNOW: tuple[str, ...] = (
    "I don't know.",
    "I do not know the answer to that.",
    "I'm not sure about that.",
    "Sorry, I can't answer this question.",
    "I have no information on this.",
    "That is something I was never told.",
    "I'm afraid I don't have an answer.",
    "I cannot say, because I don't know it.",
    "This is beyond what I know.",
    "My knowledge does not cover this.",
)
"""Answers that say that the answer is not known: the default of the methods ``idk-nll`` and ``idk-dpo``."""


def with_answer(document: Document, answer: str) -> Document:
    """Return a document with another answer. White space around the answer stays as it was.

    Raises:
        ValueError: if the document does not have exactly one answer.
    """
    spans, messages = document.answers or (), document.messages
    placed = [i for i, (*_, is_answer) in enumerate(messages or ()) if is_answer]
    if max(len(spans), len(placed)) != 1:
        raise ValueError(f"it has {max(len(spans), len(placed)) or 'no'} answers")
    if spans:
        ((begin, end),) = spans
        own = document.text[begin:end]
        new = own[: len(own) - len(own.lstrip())] + answer.strip() + own[len(own.rstrip()) :]
        text = document.text[:begin] + new + document.text[end:]
        document = replace(document, text=text, answers=((begin, begin + len(new)),))
    if placed:
        assert messages is not None
        role, _, _ = messages[placed[0]]
        messages = (*messages[: placed[0]], (role, answer.strip(), True), *messages[placed[0] + 1 :])
        document = replace(document, messages=messages)
    return document


def chosen_answers(
    method: str, given: Sequence[str] | None, pool: tuple[str, ...] | None, count: int, seed: int
) -> list[str]:
    """Return an answer for each forget document.

    Args:
        method: the method's name, for errors.
        given: answers of the user: one for each forget document; or, for a method with a pool, another pool. None: the
            method's pool.
        pool: :attr:`~routed_rl.lm.suppressors.Suppressor.alternatives` of the method. None: it takes no answers.
        count: F.
        seed: fixes which answer of a pool a document gets.

    Raises:
        UserError: for answers that are missing, blank, of another number, or given to a method that needs none.
    """
    if pool is None:
        raise UserError(f"the method {method} needs no alternative answers: leave out alternatives")
    if isinstance(given, str):
        raise UserError(f"alternatives must be a list of answers, got one string: {given[:40]!r}")
    answers = list(pool if given is None else given)
    if bad := [answer for answer in answers if not isinstance(answer, str) or not answer.strip()]:
        raise UserError(f"alternatives must be texts that are not blank, got {bad[0]!r}")
    if given is not None and len(answers) == count:
        return answers
    if not pool:
        has = "none" if given is None else len(answers)
        raise UserError(
            f"the method {method} needs alternatives, one answer for each of {count} forget documents, got {has}"
        )
    if not answers:
        raise UserError("alternatives must have one or more answers, got none")
    drawn = np.random.default_rng(derive_seed(seed, "alternatives")).integers(len(answers), size=count)
    return [answers[number] for number in drawn]


def answered(method: str, documents: Iterable[Document], answers: Iterable[str]) -> list[Document]:
    """Return documents with other answers.

    Raises:
        UserError: for a document without a question and one answer.
    """
    found = []
    for document, answer in zip(documents, answers, strict=True):
        try:
            found.append(with_answer(document, answer))
        except ValueError as error:
            raise UserError(
                f"the method {method} needs forget documents that are a question and its answer, but {error}: "
                f"{document.text[:60]!r}"
            ) from None
    return found


def check_pairs(option: str, rows: int, parts: int) -> None:
    """Raise UserError if parts of a batch would cut between forget rows and their alternatives.

    Args:
        option: the option with the number of rows, as on the command line.
        rows: of each set in a batch.
        parts: in which all processes together compute a batch.
    """
    if rows % parts:
        raise UserError(
            f"{written(option, rows)} must be divisible by the {parts} parts of a batch (processes times accumulate), "
            "so that a question and its alternative answer stay together"
        )


def other_answers(
    method: str, forget: Texts | Corpus, pool: tuple[str, ...] | None, given: Sequence[str] | None, seed: int
) -> list[Document]:
    """Return forget documents with other answers. The arguments are those of :func:`chosen_answers`.

    Raises:
        UserError: as :func:`chosen_answers` and :func:`answered`, or for a corpus, which has no texts.
        ValueError: as :func:`~routed_rl.lm.text_corpus`.
    """
    if isinstance(forget, Corpus) and pool is not None:
        raise UserError(
            f"the method {method} needs the questions of the forget set, and a Corpus has tokens alone: pass forget "
            "and retain as rows with a question and an answer"
        )
    documents = [] if isinstance(forget, Corpus) else list(labelled_documents("forget", forget))
    return answered(method, documents, chosen_answers(method, given, pool, len(documents), seed))


class Alternatives:
    """Forget documents with other answers, as rows of tokens. Each is a whole row.

    Args:
        numbers: ``(F,)``: the numbers of the forget documents.
        corpus: the same documents with other answers, in the same order, as :func:`tokenised_questions` returns them.

    Attributes:
        corpus: as above.
        longest: tokens of the longest alternative document.
        tokens_per_row: mean number of tokens of an alternative document.

    Raises:
        ValueError: if there are more or fewer alternatives than forget documents.
    """

    def __init__(self, numbers: np.ndarray, corpus: Corpus) -> None:
        self.corpus, sizes = corpus, np.diff(corpus.starts)
        if len(numbers) != len(sizes):
            raise ValueError(f"{len(numbers)} forget documents need as many alternatives, got {len(sizes)}")
        self.longest, self.tokens_per_row = int(sizes.max()), float(sizes.mean())
        self._rows = Rows(corpus, np.arange(len(sizes)), self.longest, None, pack=False)
        self._row = {int(numbers[place]): row for row, place in enumerate(self._rows.documents)}

    def check(self, corpus: Corpus, documents: np.ndarray, length: int) -> None:
        """Raise UserError unless each of these forget documents, and each alternative, fits in a row of a length."""
        longest = max(self.longest, int(np.diff(corpus.starts)[documents].max()))
        if longest > length:
            raise UserError(
                f"{written('--length', length)} is too small: a question with its answer, or an alternative "
                f"answer, has {longest} tokens; use longer rows, or leave out long questions"
            )

    def batch(self, numbers: np.ndarray) -> Batch:
        """Return ``(B, T)`` rows: the alternatives of forget documents, in this order. They have no labels."""
        return self._rows.batch(np.array([self._row[int(number)] for number in numbers]))


def tokenised_questions(
    documents: Sequence[Document], tokenizer: Any, score: Literal["answers", "all"] = "answers"
) -> Corpus:
    """Return forget documents with other answers as a corpus, in their order.

    Args:
        documents: from :func:`answered`.
        tokenizer: of transformers.
        score: as for :func:`~routed_rl.lm.build_corpus`.

    Raises:
        UserError: for a document without a token that counts in a loss.
    """
    size = max(tokenizer.get_vocab().values()) + 1
    made = list(tokenise(documents, tokenizer, size, None, "document", (), score, None, None))
    starts = np.cumsum([0, *(len(of.tokens) for of in made)])
    tokens, scored = (np.concatenate([getattr(of, name) for of in made]) for name in ("tokens", "scored"))
    none = np.zeros(len(tokens), dtype=bool)
    corpus = Corpus(tokens, none, starts, none[: len(made)], {}, scored)
    if len(made) < len(documents) or not corpus.has_targets(np.arange(len(made))).all():
        raise UserError("alternatives must have a token that counts in a loss; one of them has none")
    return corpus
