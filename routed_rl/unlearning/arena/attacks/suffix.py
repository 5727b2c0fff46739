"""Greedy coordinate search for words that bring answers back when they follow a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.runs import derive_seed
from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim
from routed_rl.unlearning.arena.attacks.halves import halves, undivided
from routed_rl.unlearning.arena.attacks.suffix_loss import SuffixLoss
from routed_rl.unlearning.benchmarks.benchmark import Benchmark
from routed_rl.unlearning.copies import kept


@dataclass(frozen=True)
class Suffix(ArenaAttack):
    """Search words that, after any question, lower the loss of its answer (GCG, Zou et al. 2023).

    The attacker has one half of the forget examples, and uses at most a batch of them. The measurement is on all forget
    questions. In each round, a gradient says which words would help at each place. Some exchanges of one word are
    tried. The best is kept if the loss falls. Each word is one token.
    """

    length: int = 5
    """words of the suffix"""
    candidates: int = 24
    """exchanges that are tried in a round; each costs a forward pass"""
    likeliest: int = 64
    """words from which the exchanges at a place are drawn: those with the best gradient"""

    group: ClassVar[Group] = "prompts"

    @property
    def attempts(self) -> Sequence[Setting]:
        """The length of the suffix."""
        return (self.length,)

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the attack is not possible; see :meth:`ArenaAttack.undefined`."""
        return undivided(benchmark)

    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Search as long as the victim's steps last; see :meth:`ArenaAttack.attempt`.

        Raises:
            UserError: if the tokenizer has no words of one token, or no question leaves room for a suffix.
        """
        rng = np.random.default_rng(derive_seed(victim.seed, "suffix"))
        loss = SuffixLoss(victim, halves(victim.benchmark, victim.seed)[0], int(setting))
        suffix = rng.integers(len(loss.words), size=int(setting))
        of_round = len(loss.examples) / victim.batch_size * (1 + FORWARD_PASS * self.candidates)
        rounds = int(victim.steps / of_round)
        with kept(victim.model):
            for _ in range(rounds):
                lowest, slopes = loss.slopes(suffix)
                best = np.argsort(slopes, axis=1, kind="stable")[:, : self.likeliest]
                places = rng.integers(len(suffix), size=self.candidates)
                exchanges = [np.where(np.arange(len(suffix)) == i, rng.choice(best[i]), suffix) for i in places]
                losses = [loss(exchanged) for exchanged in exchanges]
                if min(losses) < lowest:  # not so for NaN, of a model that has diverged
                    suffix = exchanges[int(np.argmin(losses))]
        look(rounds * of_round, victim.model, loss.change(suffix))
        return rounds * of_round
