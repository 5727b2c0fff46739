"""Rounding of all matrices to a few bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim
from routed_rl.unlearning.attacks import quantised


@dataclass(frozen=True)
class Quantisation(ArenaAttack):
    """Round all matrices to a few bits, row by row (Zhang et al. 2024). The attacker needs no data."""

    bits: tuple[int, ...] = (8, 4)
    """bits of each attempt"""

    group: ClassVar[Group] = "weights"

    @property
    def attempts(self) -> Sequence[Setting]:
        """The numbers of bits."""
        return self.bits

    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Round once; see :meth:`ArenaAttack.attempt`."""
        look(0, quantised(victim.model, int(setting)))
        return 0.0
