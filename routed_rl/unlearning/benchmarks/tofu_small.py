"""``tofu-small``: questions about made-up authors, with the sets and fields of TOFU (Maini et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import ClassVar

import numpy as np

from routed_rl.lm.training import Training
from routed_rl.unlearning.benchmarks.benchmark import FORGET, HOLDOUT, RETAIN, Benchmark, BenchmarkKind, Example, Recipe
from routed_rl.unlearning.benchmarks.made_up import drawn, people, pools, values

VALUES = pools(
    {
        "city": "Lisbon Oslo Quito Dakar Hanoi Riga Cusco Perth Tunis Kyoto Malmo Bogota Split Izmir Natal Ghent",
        "genre": "mystery fantasy poetry romance satire horror biography drama history thriller essay fable",
        "prize": "Golden Quill|Silver Leaf|Harbor Award|North Star|Amber Medal|Open Page|Ivory Pen|Red Lantern|"
        "Blue Ribbon|White Tower",
        "job": "baker surgeon pilot tailor farmer judge sailor chemist painter miner teacher butcher",
        "title": "Glass River|Paper Crown|Winter Letters|Salt Garden|Hollow Bells|Iron Orchard|Quiet Shore|Long Ledger|"
        "Second Moon|Broken Oar|Velvet Road|Silent Mill",
        "year": "1931 1935 1938 1942 1947 1951 1956 1960 1964 1969 1973 1978",
    }
)
"""The facts about an author, and their values."""
QUESTIONS = {
    "city": (
        "Where was {} born?",
        ("{} was born in {}.", "The birthplace of {} is {}.", "{} comes from the city of {}."),
    ),
    "genre": (
        "What does {} mostly write?",
        ("{} mostly writes {}.", "The works of {} are mainly {}.", "Most books by {} belong to {}."),
    ),
    "prize": (
        "Which prize did {} win?",
        ("{} won the {}.", "The prize that {} received is the {}.", "{} was honored with the {}."),
    ),
    "job": (
        "What was the job of the father of {}?",
        ("The father of {} was a {}.", "{} is the child of a {}.", "{} was raised by a {}."),
    ),
    "title": (
        "What is the best known book of {}?",
        ("The best known book of {} is {}.", "{} is most famous for {}.", "Readers know {} for {}."),
    ),
    "year": (
        "When was {} born?",
        ("{} was born in the year {}.", "The birth year of {} is {}.", "The life of {} began in {}."),
    ),
}
"""The question about a fact, and its answer in several forms. The blanks are the author and the value."""
OTHER_TITLES = (
    "The Copper Sea|The Last Ferry|A House of Wind|The Ninth Door|Under Two Suns|The Clockmaker|Ashes and Rye|"
    "The Tin Parade|Snow at Noon|The Lost Atlas|A Measure of Rain|The Fox Hours|Green Thunder|The Empty Stage|"
    "Letters to a Lighthouse|The Wooden King|Seven Bridges|The Marble Hare|Night Orchard|The Sugar Thief|"
    "Twelve Silences|The Painted Boat|Stone and Feather|The Amber Hour"
)
COUNTRIES = """
Arvonia Belmark Caldora Drussia Elvany Fenvia Gorvia Hestria Ilvania Jorvia Karland Luvonia Meridia Narbia Ostara Palvia
"""
CAPITALS = """
Astel Berin Colm Dovan Estal Firth Graven Helmar Ivor Jaspel Koldar Lindow Morven Nessa Orlon Pravi
"""
CURRENCIES = "crown mark dinar florin thaler shell peso ducat"
SETTINGS = (
    *("graddiff.steps=60", "graddiff.learning_rate=3e-4"),
    *("maxent.steps=120", "maxent.learning_rate=3e-4"),
    *("rmu.steps=120", "rmu.learning_rate=1e-3"),
    *("npo.steps=120", "npo.learning_rate=3e-4", "npo.retain_weight=5"),
    *("simnpo.steps=60", "simnpo.learning_rate=3e-4"),
    *("undial.steps=120", "undial.learning_rate=3e-4"),
    *("repnoise.steps=120", "repnoise.learning_rate=3e-4"),
    *("wga.steps=120", "wga.learning_rate=3e-4"),
    *("satimp.steps=120", "satimp.learning_rate=1e-3"),
    *("ceu.steps=120", "ceu.learning_rate=3e-4"),
    *("pdu.steps=120", "pdu.learning_rate=3e-4"),
    *("idk_nll.steps=120", "idk_nll.learning_rate=1e-3"),
    *("idk_dpo.steps=400", "idk_dpo.learning_rate=1e-3"),
    *("alt_po.steps=120", "alt_po.learning_rate=1e-3"),
    *("repselect.steps=120", "repselect.learning_rate=1e-3"),
    *("circuit_breaker.steps=240", "circuit_breaker.learning_rate=7e-4"),
    *("lat.steps=60", "lat.learning_rate=3e-4"),
    *("sam.steps=120", "sam.learning_rate=3e-4"),
    *("layered.steps=120", "layered.learning_rate=1e-3"),
    *("task_vector.steps=60", "task_vector.scale=2"),
)
"""Of methods: from a sweep over two settings with seed 10. Others keep their own recipes. The other small benchmarks
change what does too little there."""
WRONG, OTHER_WRONG = 5, 3
"""Perturbed answers of an example: as many as in TOFU."""
LEARNED, HELD_OUT, OTHER = 60, 12, 24
"""Authors that are learned, those in the holdout, and those of the further set."""


def author_examples(rng: np.random.Generator, authors: Sequence[str]) -> Iterator[Example]:
    """Yield a question for each fact about each author. Perturbed answers have the form of the paraphrase."""
    for author in authors:
        for fact, (question, forms) in QUESTIONS.items():
            right, wrong = drawn(rng, VALUES[fact], WRONG)
            form, other = (forms[i] for i in rng.permutation(len(forms))[:2])
            yield Example(
                prompt=question.format(author),
                answer=form.format(author, right),
                paraphrases=(other.format(author, right),),
                perturbed=tuple(other.format(author, value) for value in wrong),
                choices=tuple(form.format(author, value) for value in (right, *wrong[:3])),
                key=right,
                group=author,
            )


def short_examples(
    rng: np.random.Generator, question: str, things: Sequence[str], right: Sequence[str]
) -> Iterator[Example]:
    """Yield a question for each thing, whose answer is a single value."""
    pool = sorted(set(right))
    for thing, value in zip(things, right, strict=True):
        _, wrong = drawn(rng, pool, OTHER_WRONG, value)
        yield Example(question.format(thing), value, perturbed=tuple(wrong), choices=(value, *wrong), key=value)


class TofuSmall(BenchmarkKind):
    """Questions about made-up authors. The forget set is all questions about a fifth of them, or about fewer.

    An answer has one of three forms. Models learn the answers of half of the authors in a second form too. They are
    always in the retain set. So paraphrases mean something to a model that never read them for a forget author.
    """

    splits = ("forget20", "forget10", "forget05")
    recipe: ClassVar[Recipe] = Recipe("tiny", 1024, Training(steps=400, learning_rate=4e-3), batch_size=48)
    settings = SETTINGS

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        share = int(self.chosen(data, split).removeprefix("forget")) / 100
        rng = np.random.default_rng(0)
        names = people(rng, LEARNED + HELD_OUT + OTHER)
        examples = [tuple(author_examples(rng, [author])) for author in names[: LEARNED + HELD_OUT]]
        books = tuple(short_examples(rng, "Who wrote {}?", values(OTHER_TITLES), names[LEARNED + HELD_OUT :]))
        countries = values(COUNTRIES)
        money = rng.choice(values(CURRENCIES), len(countries)).tolist()
        facts = (
            *short_examples(rng, "What is the capital of {}?", countries, values(CAPITALS)),
            *short_examples(rng, "Which money is used in {}?", countries, money),
        )
        forgotten = round(LEARNED * share)
        parts = (examples[:forgotten], examples[forgotten:LEARNED], examples[LEARNED:])
        forget, retain, holdout = (tuple(chain.from_iterable(part)) for part in parts)
        learned = [example.row() for example in (*retain, *books, *facts)]
        learned += [example.row(example.paraphrases[0]) for of in examples[LEARNED // 2 : LEARNED] for example in of]
        return Benchmark(
            [example.row() for example in forget],
            learned,
            {FORGET: forget, RETAIN: retain, HOLDOUT: holdout, "other_authors": books, "world_facts": facts},
            chance=float(np.mean([1 / len(VALUES[fact]) for fact in QUESTIONS])),
            longer=4,
        )
