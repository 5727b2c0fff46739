"""Interpolation towards the original model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim


@dataclass(frozen=True)
class Interpolation(ArenaAttack):
    """Move all weights towards those of the original model: ``(1 - s) unlearned + s original``.

    The attacker has the original model, and so knows the forget set without an attack. This is a measurement: it says
    how far from the original the knowledge is gone. If a small ``s`` brings it back, the unlearned model lies at the
    edge of the original's basin (linear mode connectivity, Frankle et al. 2020).
    """

    shares: tuple[float, ...] = (0.1, 0.25, 0.5)
    """share of the original, ``s``, in each attempt"""

    group: ClassVar[Group] = "weights"
    needs_original: ClassVar[bool] = True
    ranked: ClassVar[bool] = False

    @property
    def attempts(self) -> Sequence[Setting]:
        """The shares."""
        return self.shares

    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Interpolate once; see :meth:`ArenaAttack.attempt`."""
        assert victim.original is not None, "needs_original says so"
        mixed = copy.deepcopy(victim.model)
        with torch.no_grad():
            for weight, of_original in zip(mixed.parameters(), victim.original.parameters(), strict=True):
                weight.lerp_(of_original.to(weight), float(setting))
        look(0, mixed)
        return 0.0
