"""Gradient ascent (Jang et al. 2023, Knowledge Unlearning): raise the loss on the forget set, and do nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from routed_rl.lm.suppressors.graddiff import GradDiff
from routed_rl.lm.suppressors.suppressor import brief


@dataclass(frozen=True)
class GradAscent(GradDiff):
    """``- CE_forget``: GradDiff without the retain term. It soon ruins the whole model, so its recipe is short."""

    retain_weight: float = 0.0
    """weight of the retain loss: a"""

    recipe = brief(steps=10, learning_rate=1e-4)
