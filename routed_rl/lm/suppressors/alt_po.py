"""AltPO, alternate preference optimisation (Mekala et al. 2025): prefer a plausible wrong answer."""

from __future__ import annotations

from dataclasses import dataclass

from routed_rl.lm.suppressors.idk_dpo import IdkDpo
from routed_rl.lm.suppressors.suppressor import brief


@dataclass(frozen=True)
class AltPo(IdkDpo):
    """The loss of IdkDpo. The user gives the alternatives: for each question an answer of the same style, but wrong."""

    alternatives = ()
    recipe = brief(steps=100, learning_rate=3e-4)
