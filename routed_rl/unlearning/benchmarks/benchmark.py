"""What a benchmark of unlearning is: documents that models learn, and examples by which they are measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from routed_rl.errors import UserError
from routed_rl.lm.chat import ChatFormat
from routed_rl.lm.documents import from_row
from routed_rl.lm.training import Training
from routed_rl.wording import did_you_mean, written

Row = Mapping[str, Any]
"""A document, of a form of :func:`~routed_rl.lm.from_row`."""
FORGET, RETAIN, HOLDOUT = "forget", "retain", "holdout"
"""Sets of examples that have a meaning of their own. Nothing in ``holdout`` was ever learned; it is like ``forget``."""
LONGEST_ANSWER = 128
"""Tokens that a model writes at most."""
TEXTS = "_texts"
"""End of the names of sets whose examples are texts to be continued, such as ``forget_texts``."""
MEMBERS = "_members"
"""End of the names of sets for membership inference alone, ``forget_members`` and ``holdout_members``."""


@dataclass(frozen=True)
class Example:
    """A question with its answer, or a text with its continuation.

    Attributes:
        prompt: the question, or the beginning of the text. Blank: all of the text is ``answer``.
        answer: the right answer, or the rest of the text.
        paraphrases: the right answer in other words.
        perturbed: wrong answers in the words of the paraphrases, or without any of the answer, but for the fact.
        choices: options of a multiple-choice question, the right one first. Empty: none.
        key: the words of the answer that state the fact. Blank: all of the answer.
        chat: whether prompt and answer are messages of a user and a model. False: parts of one text.
        group: what the example belongs to, such as a person or a text. Attackers who know some examples of a group are
            measured on other groups. Blank: it is a group of its own.
    """

    prompt: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    perturbed: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    key: str = ""
    chat: bool = True
    group: str = ""

    def row(self, answer: str | None = None) -> dict[str, str]:
        """Return the document that has this answer, or the right one."""
        answer = self.answer if answer is None else answer
        if not self.prompt:
            return {"text": answer}
        names = ("question", "answer") if self.chat else ("prompt", "completion")
        return dict(zip(names, (self.prompt, answer), strict=True))


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Documents and examples.

    Attributes:
        forget: the documents to unlearn. A model to be unlearned has learned these and the retain documents.
        retain: the documents to keep.
        sets: examples by set: ``forget``, ``retain``, ``holdout``, and others. A model should keep all others. Sets
            of texts are called after their kind, such as ``forget_texts``.
        main: name of the score that says how much of the forget set a model knows. Attackers raise it.
        chance: the main score of a model that only guesses.
        longer: tokens that a written answer may have more than the true one. It has at most 128 (MUSE, Shi et al.
            2024). A model that gives the fact late in a long answer needs room.
        stops: written answers end before the first of these texts, such as a blank line. Texts that are continued do
            not.

    Raises:
        UserError: for a benchmark without documents or without examples to forget and to retain, or with a text in
            both sets.
    """

    forget: Sequence[Row]
    retain: Sequence[Row]
    sets: Mapping[str, Sequence[Example]]
    main: str = "knowledge"
    chance: float = 0.0
    longer: int = LONGEST_ANSWER
    stops: Sequence[str] = ()

    def __post_init__(self) -> None:
        for kind in (FORGET, RETAIN):
            if not getattr(self, kind):
                raise UserError(f"the benchmark has no {kind} documents")
            if not self.examples(kind):
                raise UserError(f"the benchmark has no examples of the {kind} set")
        learned = {kind: {_text(row) for row in getattr(self, kind)} for kind in (FORGET, RETAIN)}
        both = learned[FORGET] & learned[RETAIN]
        if both:
            raise UserError(
                f"{len(both)} of {len(self.forget)} forget documents are in the retain set too, for example "
                f"{min(both)[:60]!r}: take them out of one set"
            )
        held = {
            _text(example.row()) for end in ("", TEXTS, MEMBERS) for example in self.sets.get(f"{HOLDOUT}{end}", ())
        }
        for kind, texts in learned.items():
            if shared := held & texts:
                raise UserError(
                    f"{len(shared)} of {len(held)} holdout examples are {kind} documents, for example "
                    f"{min(shared)[:60]!r}: a holdout must be new to all models"
                )

    def examples(self, name: str) -> Sequence[Example]:
        """Return a set's questions, or where it has none its texts, or nothing."""
        return self.sets.get(name) or self.sets.get(f"{name}{TEXTS}", ())

    def texts(self, name: str) -> Sequence[Example]:
        """Return a set's texts, or where it has none its questions, or nothing."""
        return self.sets.get(f"{name}{TEXTS}") or self.sets.get(name, ())

    @property
    def kept(self) -> list[str]:
        """The names of the sets that a model should keep."""
        return [name for name in self.sets if name.removesuffix(TEXTS).removesuffix(MEMBERS) not in (FORGET, HOLDOUT)]


def _text(row: Row) -> str:
    return " ".join(from_row(row).text.split())


def wrong_answers(benchmark: Benchmark) -> list[str]:
    """Return a perturbed answer for each forget document, for methods that teach another answer.

    Raises:
        ValueError: for a document that is no example with perturbed answers.
    """
    known = {tuple(example.row().items()): example.perturbed for example in benchmark.examples(FORGET)}
    found = [known.get(tuple(row.items()), ()) for row in benchmark.forget]
    if missing := sum(not wrong for wrong in found):
        raise ValueError(f"{missing} of {len(found)} forget documents have no perturbed answer to teach instead")
    return [wrong[0] for wrong in found]


@dataclass(frozen=True)
class Recipe:
    """How a small model learns a benchmark.

    Attributes:
        model: a name in :data:`~routed_rl.lm.PRESETS`.
        vocabulary: most tokens of the tokenizer that is trained on the benchmark's texts.
        training: of the model that learns everything, and of the one that learns the retain set alone.
        batch_size: rows of a training step.
    """

    model: str
    vocabulary: int
    training: Training
    batch_size: int = 16


class BenchmarkKind(ABC):
    """A benchmark that can be named: where its documents come from.

    Attributes:
        splits: names of its splits, the usual one first. Empty: it has none.
        recipe: how the arena trains a model of its own. None: the user names a model that knows the benchmark.
        settings: of methods on this benchmark, each ``METHOD.NAME=VALUE``. Others keep their own recipes.
        chat: how the questions are written for models that the user names.
        scores: names of the scores that are measured if no others are asked for. Empty: all that are defined.
    """

    splits: ClassVar[Sequence[str]] = ()
    recipe: ClassVar[Recipe | None] = None
    settings: ClassVar[Sequence[str]] = ()
    chat: ClassVar[ChatFormat] = ChatFormat()
    scores: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark.

        Args:
            data: a folder or file with its data. None: the usual place, such as the Hugging Face Hub.
            split: one of ``splits``. None: the usual one.

        Raises:
            UserError: for data without a field that is needed, or an unknown split.
            ConnectionError: if the Hub cannot be read.
        """

    def chosen(self, data: str | None, split: str | None) -> str:
        """Return the split to load of a benchmark that is made here, and so has no files.

        Raises:
            UserError: for an unknown split, or for files.
        """
        if data is not None:
            raise UserError(
                f"{written('--data', data)}: this benchmark is made by the program and reads no files; leave it out"
            )
        return self.known(split)

    def known(self, split: str | None) -> str:
        """Return a split, or the usual one for None. A benchmark without splits has "".

        Raises:
            UserError: for an unknown split.
        """
        if split is not None and not self.splits:
            raise UserError(f"{written('--split', split)}: this benchmark has no splits; leave it out")
        if split is not None and split not in self.splits:
            raise UserError(
                f"--split must be one of {', '.join(self.splits)}, got {split!r}{did_you_mean(split, self.splits)}"
            )
        return split or next(iter(self.splits), "")

    @classmethod
    def documents(cls, benchmark: Benchmark) -> Iterator[str]:
        """Yield the texts on which a tokenizer is trained: all documents and answers."""
        for row in (*benchmark.forget, *benchmark.retain):
            yield _text(row)
        for examples in benchmark.sets.values():
            for example in examples:
                for answer in (example.answer, *example.paraphrases, *example.perturbed, *example.choices):
                    yield f"{example.prompt} {answer}"
