"""Unlearning: methods that suppress what a model knows, and attacks that bring it back."""

from routed_rl.unlearning.guard import SuppressionError, check_suppression
from routed_rl.unlearning.relearning import FineTuning, fine_tune
from routed_rl.unlearning.sources import ForgetAndRetain
from routed_rl.unlearning.suppressors import (
    SUPPRESSORS,
    GradDiff,
    MaxEnt,
    Npo,
    RepNoise,
    Rmu,
    Sam,
    SimNpo,
    Suppressor,
    Undial,
)

__all__ = [
    "SUPPRESSORS",
    "FineTuning",
    "ForgetAndRetain",
    "GradDiff",
    "MaxEnt",
    "Npo",
    "RepNoise",
    "Rmu",
    "Sam",
    "SimNpo",
    "SuppressionError",
    "Suppressor",
    "Undial",
    "check_suppression",
    "fine_tune",
]
