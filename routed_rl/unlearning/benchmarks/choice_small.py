"""``choice-small``: multiple-choice questions as in WMDP (Li et al. 2024), about harmless things that do not exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from routed_rl.lm.training import Training
from routed_rl.unlearning.benchmarks.benchmark import FORGET, HOLDOUT, RETAIN, Benchmark, BenchmarkKind, Example, Recipe
from routed_rl.unlearning.benchmarks.made_up import coined, drawn, pools
from routed_rl.unlearning.benchmarks.tofu_small import SETTINGS

MOSSES = pools(
    {
        "Where does the moss {} grow?": "on cliffs|in caves|near springs|on old walls|under pines|in swamps|on dunes|"
        "along rivers",
        "Which color are the spores of the moss {}?": "yellow violet orange white brown crimson silver turquoise",
        "Which insect feeds on the moss {}?": "ants beetles crickets moths wasps mites termites gnats",
        "In which month does the moss {} ripen?": "February March April May June August October November",
    }
)
"""Questions about a moss, and the answers from which the choices are drawn."""
TOWNS = pools(
    {
        "What is the town {} known for?": "its glass|its honey|its bridges|its market|its bells|its carpets|its ships|"
        "its windmills",
        "Which sport is played most in {}?": "tennis rowing chess hockey fencing archery golf curling",
        "Which animal is on the flag of {}?": "a bear|a heron|a stag|a lion|an owl|a salmon|a horse|a fox",
        "On which day is the fair in {}?": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    }
)
"""The same about a town."""
CHOICES = 4
FORGOTTEN, RETAINED, HELD_OUT = 24, 40, 12
"""Mosses to forget, towns to retain, and mosses of the holdout."""


def choice_examples(
    rng: np.random.Generator, questions: Mapping[str, Sequence[str]], things: Sequence[str]
) -> Iterator[Example]:
    """Yield each question about each thing."""
    for thing in things:
        for question, pool in questions.items():
            right, wrong = drawn(rng, pool, CHOICES - 1)
            choices = (right, *wrong)
            yield Example(
                question.format(thing), right, perturbed=tuple(wrong), choices=choices, key=right, group=thing
            )


class ChoiceSmall(BenchmarkKind):
    """Questions with four choices. The forget set is about mosses, the retain set about towns. None of them exists."""

    splits = ("mosses",)
    settings = (
        *SETTINGS,
        *("maxent.learning_rate=1e-3", "rmu.steps=240", "undial.steps=240", "wga.steps=240", "idk_nll.steps=240"),
    )
    recipe: ClassVar[Recipe] = Recipe("tiny", 768, Training(steps=400, learning_rate=4e-3), batch_size=64)

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        self.chosen(data, split)
        rng = np.random.default_rng(0)
        mosses = coined(rng, "ella ium ora yx", FORGOTTEN + HELD_OUT)
        forget = tuple(choice_examples(rng, MOSSES, mosses[:FORGOTTEN]))
        retain = tuple(choice_examples(rng, TOWNS, coined(rng, "ton ford stad ville", RETAINED)))
        holdout = tuple(choice_examples(rng, MOSSES, mosses[FORGOTTEN:]))
        return Benchmark(
            [example.row() for example in forget],
            [example.row() for example in retain],
            {FORGET: forget, RETAIN: retain, HOLDOUT: holdout},
            main="multiple-choice",
            chance=1 / CHOICES,
            longer=4,
        )
