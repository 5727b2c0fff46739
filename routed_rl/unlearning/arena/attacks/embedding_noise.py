"""Noise on the input embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from routed_rl.lm.adapters import sharing_copy
from routed_rl.runs import derive_seed
from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim
from routed_rl.unlearning.benchmarks.benchmark import FORGET


@dataclass(frozen=True)
class EmbeddingNoise(ArenaAttack):
    """Add Gaussian noise to the input embeddings, the same at a position of every text. The best draw counts.

    The attacker needs no data. The best of many draws is higher than a typical one. So compare it with the same attack
    on a retrained model.
    """

    scales: tuple[float, ...] = (0.1, 0.3, 1.0)
    """standard deviation of an attempt's noise, in root mean squares of the forget examples' embeddings"""
    draws: int = 4
    """draws of the noise in an attempt"""

    group: ClassVar[Group] = "prompts"

    @property
    def attempts(self) -> Sequence[Setting]:
        """The scales."""
        return self.scales

    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Measure all draws of a scale; see :meth:`ArenaAttack.attempt`."""
        scale = float(setting) * _size(victim)
        for draw in range(self.draws):
            noised: Any = sharing_copy(victim.model)
            noise = _Noise(scale, derive_seed(victim.seed, "noise", draw))
            noised.get_input_embeddings().register_forward_hook(noise)
            look(0, noised)
        return 0.0


@torch.no_grad()
def _size(victim: Victim) -> float:
    """Return the root mean square of the embeddings of forget examples. Some models scale their embedding matrix."""
    model: Any = victim.model
    rows = victim.reader.encoded(victim.benchmark.examples(FORGET))
    tokens = torch.tensor(np.concatenate([row.tokens for row in rows]), device=next(model.parameters()).device)
    return float(model.get_input_embeddings()(tokens).double().square().mean().sqrt())


class _Noise:
    """Noise of each position, ``(T, D)``. A longer text has the same noise at its first positions."""

    def __init__(self, scale: float, seed: int) -> None:
        self._scale, self._seed, self._drawn = scale, seed, torch.zeros(0, 0)

    def __call__(self, module: nn.Module, given: Any, embedded: Tensor) -> Tensor:
        """Return embeddings, ``(B, T, D)``, with the noise added: a forward hook."""
        length, width = embedded.shape[-2:]
        if len(self._drawn) < length:
            # Numpy draws one number after the other, so a longer array begins as a shorter one.
            drawn = np.random.default_rng(self._seed).standard_normal((2 * length, width))
            self._drawn = torch.from_numpy(drawn).to(embedded)
        return embedded + self._scale * self._drawn[:length]
