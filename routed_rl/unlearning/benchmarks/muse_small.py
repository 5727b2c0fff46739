"""``muse-small``: short news about made-up towns, with the sets of MUSE (Shi et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from routed_rl.unlearning.benchmarks.tofu_small import SETTINGS

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
"""Sentences of an article in several forms: how it begins, and how it goes on. The town comes first, because a model
learns of a name only what follows it."""
QUESTIONS = {
    "event": "What happened in {town}?",
    "building": "Which building was closed in {town}?",
    "person": "Who spoke to reporters in {town}?",
    "number": "How many people were nearby in {town}?",
    "plan": "What will be built or done in {town}?",
}
WRONG = 3
KEPT, FOLD, FOLDS, HELD_OUT = 40, 20, 2, 20
"""Articles that are always in the retain set, of a fold, folds that can be forgotten, and articles of the holdout."""


@dataclass(frozen=True)
class Article:
    """News from a town: the beginning with its continuation, and questions."""

    text: Example
    questions: tuple[Example, ...]

    @property
    def documents(self) -> list[Mapping[str, Any]]:
        """The article, and its questions with their answers."""
        return [{"text": f"{self.text.prompt}{self.text.answer}"}, *(question.row() for question in self.questions)]


def articles(rng: np.random.Generator, count: int) -> Iterator[Article]:
    """Yield articles. Each is about a town and a person of its own."""
    quoted = people(rng, count)
    values = FACTS | {"person": quoted}
    for town, person in zip(coined(rng, "ton ford stad ville heim by mouth", count), quoted, strict=True):
        facts = {"town": town, "person": person} | {name: drawn(rng, pool, 0)[0] for name, pool in FACTS.items()}
        sentences = (forms[rng.integers(len(forms))].format(**facts) for forms in (OPENINGS, MIDDLES, ENDS))
        first, second, third = sentences
        yield Article(
            Example(first, f" {second} {third}", chat=False, group=town),
            tuple(
                _question(rng, town, form.format(town=town), values[name], facts[name])
                for name, form in QUESTIONS.items()
            ),
        )


def _question(rng: np.random.Generator, town: str, question: str, pool: Sequence[str], right: str) -> Example:
    _, wrong = drawn(rng, pool, WRONG, right)
    return Example(question, right, perturbed=tuple(wrong), choices=(right, *wrong), key=right, group=town)


class MuseSmall(BenchmarkKind):
    """Short news about made-up towns, with questions about them.

    Models learn the articles, and also all questions with their answers. A small model that learns the articles alone
    does not answer questions about them.

    ``scal_2`` has a larger forget set, and ``sust_2`` has another one, to be unlearned after the first.
    """

    splits = ("forget", "scal_2", "sust_2")
    settings = (*SETTINGS, "rmu.steps=240", "lat.steps=120", "circuit_breaker.learning_rate=1e-3")
    recipe: ClassVar[Recipe] = Recipe("tiny", 1024, Training(steps=400, learning_rate=4e-3), batch_size=32)

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        kind, _, number = self.chosen(data, split).partition("_")
        last = int(number or 1) * FOLD
        first = last - FOLD if kind == "sust" else 0
        found = list(articles(np.random.default_rng(0), KEPT + FOLDS * FOLD + HELD_OUT))
        kept, folds, held = found[:KEPT], found[KEPT:-HELD_OUT], found[-HELD_OUT:]
        sets = {FORGET: folds[first:last], RETAIN: kept, HOLDOUT: held}
        learned = (sets[FORGET], kept + folds[last:])  # not the folds before, which are forgotten already
        forget, retain = ([row for article in of for row in article.documents] for of in learned)
        asked = {name: tuple(question for article in of for question in article.questions) for name, of in sets.items()}
        texts = {f"{name}{TEXTS}": tuple(article.text for article in of) for name, of in sets.items()}
        return Benchmark(
            forget,
            retain,
            asked | texts,
            # Nobody guesses the person.
            chance=sum(1 / len(FACTS[name]) for name in QUESTIONS if name in FACTS) / len(QUESTIONS),
            longer=4,
        )
