"""Pruning of small weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.utils.prune import L1Unstructured

from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim


@dataclass(frozen=True)
class Pruning(ArenaAttack):
    """Set the smallest weights of each matrix to 0 (magnitude pruning, Han et al. 2015). The attacker needs no data."""

    shares: tuple[float, ...] = (0.1, 0.3, 0.5)
    """share of each matrix's weights that an attempt sets to 0"""

    group: ClassVar[Group] = "weights"

    @property
    def attempts(self) -> Sequence[Setting]:
        """The shares."""
        return self.shares

    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Prune once; see :meth:`ArenaAttack.attempt`."""
        pruned, method = copy.deepcopy(victim.model), L1Unstructured(float(setting))
        with torch.no_grad():
            for weight in pruned.parameters():
                if weight.ndim >= 2:
                    weight.masked_fill_(method.compute_mask(weight, torch.ones_like(weight)) == 0, 0.0)
        look(0, pruned)
        return 0.0
