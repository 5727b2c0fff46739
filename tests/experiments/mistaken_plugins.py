"""Scores and attacks of the arena with a mistake each, for tests: each is as a user might write it."""

import numpy as np

from routed_rl.unlearning.arena.attacks import ArenaAttack
from routed_rl.unlearning.scores import Score


class NoBest(Score):
    def examples(self, reader):
        return {"mean": np.ones(3)}

    def value(self, numbers, retrained=None):
        return float(numbers["mean"].mean())


class Lower(NoBest):
    best = "lower"


class Lists(NoBest):
    best = "low"

    def examples(self, reader):
        return [1.0]


class Misspelt(NoBest):
    best = "low"

    def examples(self, reader):
        return {"mean": np.array([1.0 for _ in reader.benchmark.examples("forgets")])}


class Arrays(NoBest):
    best = "low"

    def value(self, numbers, retrained=None):
        return numbers["mean"]


class Outside(NoBest):
    best = "low"

    def value(self, numbers, retrained=None):
        return -1.85


class Divides(NoBest):
    best = "low"

    def value(self, numbers, retrained=None):
        return 1 / 0


class Adds(NoBest):
    best = "low"
    compared = True

    def examples(self, reader):
        return {"mean": np.ones(3) + np.ones(4)}


class Changing(NoBest):
    best = "low"

    def examples(self, reader):
        next(reader.model.parameters()).data.add_(1)
        return {"mean": np.ones(3)}


class NoGroup(ArenaAttack):
    attempts = (1,)

    def attempt(self, setting, victim, look):
        look(0, victim.model)


class Weigths(NoGroup):
    group = "weigths"


class Nothing(NoGroup):
    group = "weights"


class Changes(NoGroup):
    group = "weights"

    def attempt(self, setting, victim, look):
        matrix = next(victim.model.parameters()).data
        matrix.copy_(matrix.flip(0))
        look(0, victim.model)
        return 0
