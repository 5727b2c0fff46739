"""``muse-small``: short news about made-up towns, with the sets of MUSE (Shi et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from routed_rl.lm.training import Training
from routed_rl.unlearning.benchmarks.benchmark import (
    FORGET,
    HOLDOUT,
    RETAIN,
    TEXTS,
    Benchmark,
    BenchmarkKind,
    Example,
    Recipe,
)
from routed_rl.unlearning.benchmarks.made_up import coined, drawn, people, pools

FACTS = pools(
    {
        "event": "a flood|a fire|a storm|a strike|a theft|an outage|a collapse|a leak|a protest|a festival",
        "building": "school museum theater stadium library station factory market harbor church",
        "number": "twelve fifteen twenty thirty forty fifty sixty seventy eighty ninety",
        "plan": "new roof|second bridge|bigger wall|night train|rescue fund|clean canal|public vote|longer pier|"
        "safer road|free clinic",
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    }
)
"""Facts of an article, and their values. The person who is quoted is another one."""
OPENINGS = (
    "News from {town}: {event} closed the {building} on {day}.",
    "{town} reports that on {day} {event} closed the {building}.",
    "On {day}, {event} closed the {building} of {town}.",
)
MIDDLES = (
    "{person} said that {number} people were nearby.",
    "About {number} people were nearby, said {person}.",
    "{person} spoke of {number} people nearby.",
)
ENDS = (
    "{town} now wants a {plan}.",
    "A {plan} is planned in {town}.",
    "The council of {town} voted for a {plan}.",
)
"""Sentences of an article in several forms: how it begins, and how it goes on."""
QUESTIONS = {
    "event": "What happened in {town}?",
    "building": "Which building was closed in {town}?",
    "person": "Who spoke to reporters in {town}?",
    "number": "How many people were nearby in {town}?",
    "plan": "What will be built or done in {town}?",
}
WRONG = 3
TAUGHT, FOLD, FOLDS, HELD_OUT = 40, 20, 3, 20
"""Articles with questions in the training set, of a fold, folds that can be forgotten, and articles of the holdout."""


@dataclass(frozen=True)
class Article:
    """The parts of an article, and the questions about it."""

    beginning: str
    rest: str
    questions: tuple[Example, ...]

    @property
    def text(self) -> Example:
        """The article, of which the model reads the beginning."""
        return Example(self.beginning, f" {self.rest}", chat=False)

    @property
    def row(self) -> Mapping[str, Any]:
        """The article as a document."""
        return {"text": f"{self.beginning} {self.rest}"}


def articles(rng: np.random.Generator, count: int) -> list[Article]:
    """Return articles. Each is about a town and a person of its own."""
    found = []
    quoted = people(rng, count)
    values = FACTS | {"person": quoted}
    for town, person in zip(coined(rng, "ton ford stad ville heim by mouth", count), quoted, strict=True):
        facts = {"town": town, "person": person} | {name: drawn(rng, pool, 0)[0] for name, pool in FACTS.items()}
        questions = []
        for name, question in QUESTIONS.items():
            right, wrong = drawn(rng, values[name], WRONG, facts[name])
            asked = question.format(town=town)
            questions.append(Example(asked, right, perturbed=tuple(wrong), choices=(right, *wrong), key=right))
        beginning, *rest = (forms[rng.integers(len(forms))].format(**facts) for forms in (OPENINGS, MIDDLES, ENDS))
        found.append(Article(beginning, " ".join(rest), tuple(questions)))
    return found


def questions(of: Sequence[Article]) -> tuple[Example, ...]:
    """Return all questions about articles."""
    return tuple(chain.from_iterable(article.questions for article in of))


class MuseSmall(BenchmarkKind):
    """Short news about made-up towns. The forget set is a fifth of the articles.

    Models learn questions and answers about some other articles, which are always in the retain set. So they can
    answer questions about an article that they only read. Those questions are measured, of both sets.

    ``scal_2`` and ``scal_3`` have larger forget sets, and ``sust_2`` and ``sust_3`` have other ones.
    """

    splits = ("forget", "scal_2", "scal_3", "sust_2", "sust_3")
    recipe: ClassVar[Recipe] = Recipe("tiny", 1024, Training(steps=600, learning_rate=4e-3))

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        kind, _, number = self.chosen(data, split).partition("_")
        last = int(number or 1) * FOLD
        found = articles(np.random.default_rng(0), TAUGHT + FOLDS * FOLD + HELD_OUT)
        taught, folds, held = found[:TAUGHT], found[TAUGHT:-HELD_OUT], found[-HELD_OUT:]
        first = last - FOLD if kind == "sust" else 0
        forget, others = folds[first:last], folds[:first] + folds[last:]
        sets = {FORGET: forget, RETAIN: others or taught, HOLDOUT: held}
        return Benchmark(
            [article.row for article in forget],
            [article.row for article in (*taught, *others)] + [question.row() for question in questions(taught)],
            {name: questions(of) for name, of in sets.items()}
            | {f"{name}{TEXTS}": tuple(article.text for article in of) for name, of in sets.items()},
            chance=float(np.mean([1 / len(pool) for pool in FACTS.values()])),
        )
