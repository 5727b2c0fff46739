"""Arithmetic in words, and prompts that ask for answers: half equations, half short stories that end with a number.

UNDO's arithmetic models learn such texts, with other stories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from routed_rl.lm.arithmetic import TOPICS
from routed_rl.lm.completions import Prompt
from routed_rl.lm.documents import Document
from routed_rl.runs import derive_seed

NAMES = """
Ada Ali Amara Anton Asha Ben Bella Bo Carla Chen Dario Deniz Dora Elif Emil Emre Farah Finn Gita Goran Hana Hugo Ida
Imran Ines Ivan Jana Jonas Kaito Karim Kira Lars Leila Lena Luca Maja Malik Marta Milan Mina Nadia Nils Nora Olga Omar
Pablo Paula Petra Ravi Rosa Samir Sara Sofia Sven Tara Timo Uma Vera Yara Yusuf
"""
THINGS = """
apples badges balloons bananas beads bells biscuits books bottles bowls bricks brushes buttons candles cards carrots
chairs cherries coins crayons cups erasers feathers figs flowers forks hats jars keys kites lamps lemons letters maps
marbles melons mugs nails nuts onions oranges pears pebbles pencils pens photos plates plums puzzles ribbons ropes
rulers scarves seeds shells socks spoons stamps stickers stones tickets towels toys
"""
CONTAINERS = "bags baskets bins boxes buckets cases crates drawers sacks trays"
PLACES = "beach fair farm garden library market museum park school station"


@dataclass(frozen=True)
class _Stories:
    """Beginnings and endings of stories, in any combination. Held-out beginnings go with held-out endings only."""

    beginnings: tuple[str, ...]
    endings: tuple[str, ...]
    held_out: tuple[str, ...]
    held_out_endings: tuple[str, ...]


_STORIES = {
    "+": _Stories(
        (
            "{name} has {a} {things} and finds {b} more",
            "{name} picks up {a} {things} in the morning and {b} {things} at night",
            "{name} puts {a} {things} and then another {b} into one of the {containers}",
            "{name} owns {a} {things} and {other} owns {b}",
            "The shop at the {place} sells {a} {things} on Monday and {b} on Tuesday",
        ),
        (". Altogether that makes", ". The total is", ", which is a sum of", ". All in all there are"),
        (
            "{name} counts {a} {things} at the {place} and {b} {things} at home",
            "{name} buys {a} {things}, then gets {b} {things} as a gift",
            "{name} is carrying {a} {things} when {other} hands over {b} more",
            "There were {a} {things} at the {place} before {other} brought {b}",
            "{name} made {a} {things} last week and {b} {things} this week",
        ),
        (". Counted together they are", ". Added up, this comes to"),
    ),
    "-": _Stories(
        (
            "{name} has {a} {things} and loses {b} of them",
            "Of {a} {things} in the {containers}, {name} takes away {b}",
            "{name} starts with {a} {things} and gives {b} to {other}",
            "There were {a} {things} at the {place}, but {b} of them broke",
            "{name} keeps {a} {things} and sells {b}",
        ),
        (". What is left is", ". The number that remains is", ", so there are now", ". After that there are"),
        (
            "{other} borrowed {b} of the {a} {things} that {name} had",
            "Of {a} {things} on the shelf {name} threw out {b}",
            "{name} packed {a} {things} and unpacked {b}",
            "The {containers} held {a} {things} until {other} removed {b}",
            "{name} brought {a} {things} to the {place} and forgot {b} there",
        ),
        (". The rest is", ". Without those, there are"),
    ),
    "*": _Stories(
        (
            "{name} fills {a} {containers} with {b} {things} each",
            "Each of {a} friends brings {b} {things}",
            "{name} lays out {a} rows of {b} {things}",
            "For {a} days {name} collects {b} {things} a day",
            "At the {place} {a} {containers} hold {b} {things} apiece",
        ),
        (". In all there are", ". The total is", ", which makes", ". Altogether that is"),
        (
            "{name} buys {a} packs, and every pack has {b} {things}",
            "On each of {a} shelves {other} puts {b} {things}",
            "{name} swaps {b} {things} for each of {a} books",
            "At the {place} {a} children hold {b} {things} each",
            "{name} makes {b} {things} an hour for {a} hours",
        ),
        (". Taken together they are", ". Multiplied out, this comes to"),
    ),
    "/": _Stories(
        (
            "{name} shares {a} {things} equally among {b} friends",
            "{name} puts {a} {things} into {b} {containers}, as many in each",
            "{name} cuts a pile of {a} {things} into {b} equal parts",
            "Over {b} days {name} uses up {a} {things}, the same number a day",
            "At the {place} {a} {things} are split evenly between {b} tables",
        ),
        (". Each gets", ". The share of each is", ", so each one has", ". For every one of them that is"),
        (
            "Between them {b} children divide {a} {things} fairly",
            "{name} packs {a} {things} into {b} boxes of equal size",
            "{other} deals {a} {things} to {b} players",
            "{name} plants {a} {things} in {b} rows of equal length",
            "At the {place} {a} {things} are handed out to {b} people alike",
        ),
        (". One of them receives", ". Divided up, that is"),
    ),
}
OPERATIONS = tuple(_STORIES)


def generate_word_problems(n: int, seed: int) -> Iterator[Document]:
    """Yield ``n`` texts, which alternate between equations, ``"12 * 7 = 84."``, and stories.

    Each operation has stories of 20 forms. The topic of sums and differences is ``"addition"``, that of products
    and quotients ``"multiplication"``. Numbers are as in UNDO: up to 50 in sums, up to 20 in products.
    """
    rng = np.random.default_rng(derive_seed(seed, "word problems"))
    for i in range(n):
        operation = OPERATIONS[rng.integers(len(OPERATIONS))]
        prompt, answer, things = _problem(operation, i % 2 == 1, rng, held_out=False)
        yield Document(f"{prompt} {answer}{f' {things}' if things else ''}.", TOPICS[operation])


def word_problem_prompts(n: int, seed: int) -> list[Prompt]:
    """Return ``n`` equations and ``n`` stories of each operation, without answers. The stories have 10 other forms."""
    rng = np.random.default_rng(derive_seed(seed, "prompts"))
    prompts = []
    for operation in OPERATIONS:
        for in_words in (False, True):
            for _ in range(n):
                text, answer, _ = _problem(operation, in_words, rng, held_out=True)
                prompts.append(Prompt(text, str(answer), TOPICS[operation] == "multiplication"))
    return prompts


def _problem(operation: str, in_words: bool, rng: np.random.Generator, held_out: bool) -> tuple[str, int, str | None]:
    """Return the text before the answer, the answer, and, for a story, the things that the answer counts."""
    most = 50 if operation in "+-" else 20
    a, b = (int(number) for number in rng.integers(1, most + 1, size=2))
    if operation == "-":
        a, b = max(a, b), min(a, b)
    if operation == "/":
        a, answer = a * b, a
    else:
        answer = {"+": a + b, "-": a - b, "*": a * b}[operation]
    if not in_words:
        return f"{a} {operation} {b} =", answer, None
    stories = _STORIES[operation]
    beginnings, endings = stories.beginnings, stories.endings
    if held_out:
        beginnings, endings = stories.held_out, stories.held_out_endings
    name, other = rng.choice(NAMES.split(), size=2, replace=False)
    things, containers, place = (rng.choice(words.split()) for words in (THINGS, CONTAINERS, PLACES))
    form = str(rng.choice(beginnings)) + str(rng.choice(endings))
    text = form.format(a=a, b=b, name=name, other=other, things=things, containers=containers, place=place)
    return text, answer, str(things)
