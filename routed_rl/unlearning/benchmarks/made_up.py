"""Made-up names and questions for the small benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

FIRST = """
Ada Bela Cara Dario Elin Fausto Gita Hugo Ines Jonas Katya Lars Mira Nico Olga Paolo Rosa Sven Tilda Viktor Wanda Yusuf
Zora Amir
"""
BEGINNINGS = "Bran Cor Dal Fen Gar Hol Jar Kel Lor Mar Nor Pel Quin Ros Sal Tor Ul Var Wen Zan"
SURNAMES = "berg dahl etti ovic sen aki mond wick ez ova"


def coined(rng: np.random.Generator, endings: str, count: int) -> list[str]:
    """Return different words that exist in no language, at most 20 for each ending."""
    words = [f"{begin}{end}" for begin, end in product(BEGINNINGS.split(), endings.split())]
    return [words[i] for i in rng.permutation(len(words))[:count]]


def people(rng: np.random.Generator, count: int) -> list[str]:
    """Return the names of made-up people, at most 200. No two have the same surname."""
    first = FIRST.split()
    return [f"{rng.choice(first)} {surname}" for surname in coined(rng, SURNAMES, count)]


def values(text: str) -> list[str]:
    """Return the values of a fact, which are divided by bars or else by spaces."""
    return [value.strip() for value in text.split("|")] if "|" in text else text.split()


def drawn(rng: np.random.Generator, pool: Sequence[str], wrong: int, right: str = "") -> tuple[str, list[str]]:
    """Return a right value and different wrong ones. ``right``: the right one; otherwise it is drawn too."""
    order = [pool[i] for i in rng.permutation(len(pool))]
    right = right or order[0]
    return right, [value for value in order if value != right][:wrong]


def pools(given: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the values of facts by name; see :func:`values`."""
    return {name: values(text) for name, text in given.items()}
