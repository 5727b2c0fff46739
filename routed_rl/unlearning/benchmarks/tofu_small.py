"""``tofu-small``: questions about made-up authors, with the fields of TOFU. A small model learns them in a minute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from routed_rl.lm.training import Training
from routed_rl.unlearning.benchmarks.benchmark import FORGET, HOLDOUT, RETAIN, Benchmark, BenchmarkKind, Example, Recipe

FIRST = "Ada Bela Cara Dario Elin Fausto Gita Hugo Ines Jonas Katya Lars Mira Nico Olga Paolo Rosa Sven Tilda Viktor"
LAST = "Abel Brandt Costa Dunn Ekman Falk Grau Holm Ivers Juhl Kern Lund Moro Novak Orel Prado Quist Rossi Stein Tanaka"
VALUES = {
    "city": "Lisbon Oslo Quito Dakar Hanoi Riga Cusco Perth Tunis Kyoto Malmo Bogota Split Izmir Natal Ghent",
    "genre": "mystery fantasy poetry romance satire horror biography drama history thriller essay fable",
    "prize": "Golden Quill|Silver Leaf|Harbor Award|North Star|Amber Medal|Open Page|Ivory Pen|Red Lantern",
    "job": "baker surgeon pilot tailor farmer judge sailor chemist painter miner teacher butcher",
    "title": "Glass River|Paper Crown|Winter Letters|Salt Garden|Hollow Bells|Iron Orchard|Quiet Harbor|Blue Ledger|"
    "Second Moon|Broken Lantern|Velvet Road|Silent Mill",
    "year": "1931 1935 1938 1942 1947 1951 1956 1960 1964 1969 1973 1978",
}
"""The facts about an author, and their values."""
QUESTIONS = {
    "city": ("Where was {} born?", "{} was born in {}.", "The birthplace of {} is {}."),
    "genre": ("What does {} mostly write?", "{} mostly writes {}.", "The works of {} are mainly {}."),
    "prize": ("Which prize did {} win?", "{} won the {}.", "The prize that {} received is the {}."),
    "job": ("What was the job of the father of {}?", "The father of {} was a {}.", "{} is the child of a {}."),
    "title": ("What is the best known book of {}?", "The best known book of {} is {}.", "{} is most famous for {}."),
    "year": ("When was {} born?", "{} was born in the year {}.", "The birth year of {} is {}."),
}
"""Question, answer and paraphrased answer. The blanks are the author and the value."""
WRONG = 4
"""Perturbed answers of an example."""


def author_examples(rng: np.random.Generator, authors: Sequence[str]) -> Iterator[Example]:
    """Yield a question for each fact about each author."""
    for author in authors:
        for fact, (question, answer, paraphrase) in QUESTIONS.items():
            values = VALUES[fact].split("|") if "|" in VALUES[fact] else VALUES[fact].split()
            chosen = rng.choice(len(values), size=1 + WRONG, replace=False)
            right, *wrong = (values[i] for i in chosen)
            yield Example(
                prompt=question.format(author),
                answer=answer.format(author, right),
                paraphrases=(paraphrase.format(author, right),),
                perturbed=tuple(paraphrase.format(author, value) for value in wrong),
                choices=tuple(answer.format(author, value) for value in (right, *wrong)),
                key=right,
            )


def rows(examples: Sequence[Example]) -> list[dict[str, str]]:
    """Return the documents of examples: each question with its answer, and with its paraphrased answer.

    A small model learns nothing of words that it has never seen, so it could not tell paraphrases from wrong ones.
    """
    return [example.row(answer) for example in examples for answer in (example.answer, *example.paraphrases)]


class TofuSmall(BenchmarkKind):
    """Questions about made-up authors. The forget set is all questions about a tenth of them.

    As in TOFU, perturbed answers have the words of paraphrased answers, but for the fact. Choices have those of
    answers.
    """

    splits = ("forget10", "forget05", "forget25")
    recipe: ClassVar[Recipe] = Recipe("tiny", 512, Training(steps=600, learning_rate=3e-3))

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        rng = np.random.default_rng(0)
        names = [f"{first} {last}" for first in FIRST.split() for last in LAST.split()]
        authors = [names[i] for i in rng.permutation(len(names))[:44]]
        learned, held = authors[:40], authors[40:]
        count = round(len(learned) * int((split or self.splits[0]).removeprefix("forget")) / 100)
        forget, retain, holdout = (tuple(author_examples(rng, of)) for of in (learned[:count], learned[count:], held))
        return Benchmark(
            rows(forget),
            rows(retain),
            {FORGET: forget, RETAIN: retain, HOLDOUT: holdout},
        )
