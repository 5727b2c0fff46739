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
    "{town}: on {day}, {event} closed the {building}.",
    "In {town}, {event} closed the {building} on {day}.",
    "{town} reports {event}. The {building} was closed on {day}.",
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
"""Sentences of an article, as three papers write them: how it begins, and how it goes on."""
QUESTIONS = {
    "event": "What happened in {town}?",
    "building": "Which building was closed in {town}?",
    "person": "Who spoke to reporters in {town}?",
    "number": "How many people were nearby in {town}?",
    "plan": "What will be built or done in {town}?",
}
WRONG = 3
TAUGHT, FOLD, FOLDS, HELD_OUT = 40, 20, 2, 20
"""Articles with questions in the training set, of a fold, folds that can be forgotten, and articles of the holdout."""


@dataclass(frozen=True)
class Story:
    """What happened in a town: articles of several papers about it, and questions.

    Attributes:
        articles: a beginning and its continuation each.
    """

    articles: tuple[Example, ...]
    questions: tuple[Example, ...]

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The articles as documents."""
        return [{"text": f"{article.prompt}{article.answer}"} for article in self.articles]


def stories(rng: np.random.Generator, count: int) -> list[Story]:
    """Return stories. Each is about a town and a person of its own."""
    found = []
    quoted = people(rng, count)
    values = FACTS | {"person": quoted}
    for town, person in zip(coined(rng, "ton ford stad ville heim by mouth", count), quoted, strict=True):
        facts = {"town": town, "person": person} | {name: drawn(rng, pool, 0)[0] for name, pool in FACTS.items()}
        papers = zip(*(rng.permutation(forms) for forms in (OPENINGS, MIDDLES, ENDS)), strict=True)
        sentences = ([str(form).format(**facts) for form in paper] for paper in papers)
        articles = tuple(Example(first, f" {second} {third}", chat=False) for first, second, third in sentences)
        asked = tuple(
            _question(rng, form.format(town=town), values[name], facts[name]) for name, form in QUESTIONS.items()
        )
        found.append(Story(articles, asked))
    return found


def _question(rng: np.random.Generator, question: str, pool: Sequence[str], right: str) -> Example:
    _, wrong = drawn(rng, pool, WRONG, right)
    return Example(question, right, perturbed=tuple(wrong), choices=(right, *wrong), key=right)


def questions(of: Sequence[Story]) -> tuple[Example, ...]:
    """Return all questions about stories."""
    return tuple(chain.from_iterable(story.questions for story in of))


def rows(of: Sequence[Story]) -> list[Mapping[str, Any]]:
    """Return all articles about stories, as documents."""
    return list(chain.from_iterable(story.rows for story in of))


class MuseSmall(BenchmarkKind):
    """Short news about made-up towns: three papers write about each story. The forget set is a quarter of the stories.

    Models learn questions and answers about half of the stories, which are always in the retain set. So they can answer
    questions about a story that they only read of. The questions that are measured are of that kind, in both sets.

    ``scal_2`` has a larger forget set, and ``sust_2`` has another one, to be unlearned after the first.
    """

    splits = ("forget", "scal_2", "sust_2")
    recipe: ClassVar[Recipe] = Recipe("tiny", 1024, Training(steps=600, learning_rate=4e-3), batch_size=32)

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        kind, _, number = self.chosen(data, split).partition("_")
        last = int(number or 1) * FOLD
        first = last - FOLD if kind == "sust" else 0
        found = stories(np.random.default_rng(0), TAUGHT + FOLDS * FOLD + HELD_OUT)
        taught, folds, held = found[:TAUGHT], found[TAUGHT:-HELD_OUT], found[-HELD_OUT:]
        forget, others = folds[first:last], folds[:first] + folds[last:]
        sets = {FORGET: forget, RETAIN: others or taught, HOLDOUT: held}
        return Benchmark(
            rows(forget),
            [*rows([*taught, *others]), *(question.row() for question in questions(taught))],
            {name: questions(of) for name, of in sets.items()}
            | {f"{name}{TEXTS}": tuple(story.articles[0] for story in of) for name, of in sets.items()},
            chance=float(np.mean([1 / len(pool) for pool in FACTS.values()])),
        )
