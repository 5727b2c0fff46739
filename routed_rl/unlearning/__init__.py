"""Unlearning: methods that suppress what a model knows, noise, distillation, and relearning attacks."""

import routed_rl.lm  # noqa: F401 (says which extra is missing)
from routed_rl.lm.forget_and_retain import ForgetAndRetain
from routed_rl.lm.suppressors import (
    FORWARD_PASS,
    SUPPRESSORS,
    AltPo,
    Ceu,
    CircuitBreaker,
    GradAscent,
    GradDiff,
    IdkDpo,
    IdkNll,
    Lat,
    MaxEnt,
    Npo,
    Pdu,
    RepNoise,
    RepSelect,
    Rmu,
    Sam,
    SatImp,
    SimNpo,
    Suppressor,
    Undial,
    Wga,
)
from routed_rl.lm.suppressors.conformance import check_suppressor
from routed_rl.unlearning.attacks import (
    Attack,
    Relearning,
    WorstCase,
    barrier,
    quantised,
    relearn,
    robustness,
    weight_distance,
    worst_case,
)
from routed_rl.unlearning.distillation import DistillationObjective, Distilled, StopRule, check_vocabulary, distil
from routed_rl.unlearning.divergence import Head, divergence, teacher_target, top_k_target
from routed_rl.unlearning.guard import SuppressionError, check_suppression
from routed_rl.unlearning.memory import Memory, memory
from routed_rl.unlearning.metrics import Metric
from routed_rl.unlearning.noise import matrices, most_changed, shrink_and_perturb
from routed_rl.unlearning.pipeline import attack, undo, unlearn
from routed_rl.unlearning.procedures import PROCEDURES, Layered, Procedure, TaskVector
from routed_rl.unlearning.teacher_cache import TeacherCache, cache_teacher
from routed_rl.unlearning.tuning import Tuned, tune
from routed_rl.unlearning.undo_study import UndoStudy

__all__ = [
    "FORWARD_PASS",
    "PROCEDURES",
    "SUPPRESSORS",
    "AltPo",
    "Attack",
    "Ceu",
    "CircuitBreaker",
    "DistillationObjective",
    "Distilled",
    "ForgetAndRetain",
    "GradAscent",
    "GradDiff",
    "Head",
    "IdkDpo",
    "IdkNll",
    "Lat",
    "Layered",
    "MaxEnt",
    "Memory",
    "Metric",
    "Npo",
    "Pdu",
    "Procedure",
    "Relearning",
    "RepNoise",
    "RepSelect",
    "Rmu",
    "Sam",
    "SatImp",
    "SimNpo",
    "StopRule",
    "SuppressionError",
    "Suppressor",
    "TaskVector",
    "TeacherCache",
    "Tuned",
    "Undial",
    "UndoStudy",
    "Wga",
    "WorstCase",
    "attack",
    "barrier",
    "cache_teacher",
    "check_suppression",
    "check_suppressor",
    "check_vocabulary",
    "distil",
    "divergence",
    "matrices",
    "memory",
    "most_changed",
    "quantised",
    "relearn",
    "robustness",
    "shrink_and_perturb",
    "teacher_target",
    "top_k_target",
    "tune",
    "undo",
    "unlearn",
    "weight_distance",
    "worst_case",
]
