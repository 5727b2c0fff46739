"""Unlearning: methods that suppress what a model knows, and attacks that bring it back."""

from routed_rl.unlearning.distillation import DistillationObjective, Distilled, StopRule, distil
from routed_rl.unlearning.divergence import Head, divergence, teacher_target, top_k_target
from routed_rl.unlearning.noise import matrices, most_changed, shrink_and_perturb
from routed_rl.unlearning.relearning import FineTuning, fine_tune
from routed_rl.unlearning.rmu import ForgetAndRetain, RmuObjective
from routed_rl.unlearning.teacher_cache import TeacherCache, cache_teacher

__all__ = [
    "DistillationObjective",
    "Distilled",
    "FineTuning",
    "ForgetAndRetain",
    "Head",
    "RmuObjective",
    "StopRule",
    "TeacherCache",
    "cache_teacher",
    "distil",
    "divergence",
    "fine_tune",
    "matrices",
    "most_changed",
    "shrink_and_perturb",
    "teacher_target",
    "top_k_target",
]
