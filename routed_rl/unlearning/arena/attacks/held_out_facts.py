"""Fine-tuning on one half of the forget examples, measured on the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from routed_rl.unlearning.arena.attacks.attack import Look, Setting, Victim
from routed_rl.unlearning.arena.attacks.fine_tuning import FineTuning
from routed_rl.unlearning.arena.attacks.halves import group_of, halves, undivided
from routed_rl.unlearning.benchmarks.benchmark import FORGET, TEXTS, Benchmark, Example, Row


@dataclass(frozen=True)
class HeldOutFacts(FineTuning):
    """Fine-tune all weights on one half of the forget examples, and measure the other half (Deeb & Roger 2024).

    The attacker has the questions and answers of the first half alone. Groups of examples stay together. So knowledge
    that comes back was in the weights. The first look is before the attack, because only half of the examples count.
    """

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the attack is not possible; see :meth:`ArenaAttack.undefined`."""
        return undivided(benchmark)

    def documents(self, victim: Victim) -> Sequence[Row]:
        """Return the first half of the forget examples, with their answers."""
        return [example.row() for example in halves(victim.benchmark, victim.seed)[0]]

    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Fine-tune at one learning rate; see :meth:`ArenaAttack.attempt`."""
        half = without(victim.benchmark, halves(victim.benchmark, victim.seed)[0])
        look(0, victim.model, benchmark=half)
        return super().attempt(setting, victim, partial(look, benchmark=half))


def without(benchmark: Benchmark, known: Sequence[Example]) -> Benchmark:
    """Return a benchmark whose sets of forget examples have none of the groups of known examples."""
    groups = set(map(group_of, known))
    sets = {
        name: [example for example in of if group_of(example) not in groups] if name in (FORGET, FORGET + TEXTS) else of
        for name, of in benchmark.sets.items()
    }
    return replace(benchmark, sets={name: of for name, of in sets.items() if of})
