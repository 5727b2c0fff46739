"""Fine-tuning on a few forget documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routed_rl.runs import derive_seed
from routed_rl.unlearning.arena.attacks.attack import Victim
from routed_rl.unlearning.arena.attacks.fine_tuning import FineTuning
from routed_rl.unlearning.benchmarks.benchmark import Benchmark, Row


@dataclass(frozen=True)
class FewExamples(FineTuning):
    """Fine-tune all weights on a few forget documents, once for each learning rate.

    The attacker has these documents alone. The seed draws them. The measurement is on all forget questions, also on
    those that the documents answer.
    """

    count: int = 8
    """number of forget documents"""

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the attack is not possible; see :meth:`ArenaAttack.undefined`."""
        have = len(benchmark.forget)
        return None if have > self.count else f"the benchmark has {have} forget documents, no more than {self.count}"

    def documents(self, victim: Victim) -> Sequence[Row]:
        """Return the few forget documents."""
        order = np.random.default_rng(derive_seed(victim.seed, "few examples")).permutation(
            len(victim.benchmark.forget)
        )
        return [victim.benchmark.forget[i] for i in order[: self.count]]
