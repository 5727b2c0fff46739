"""Scores: what a model knows of a benchmark. Each is pure arithmetic on probabilities and written texts."""

from collections.abc import Mapping

from routed_rl.extras import require
from routed_rl.plugins import Registry
from routed_rl.unlearning.scores.choices import (
    MultipleChoice,
    MultipleChoiceTotal,
    NormalisedProbability,
    RetainedMultipleChoice,
    chosen,
    normalised_probability,
)
from routed_rl.unlearning.scores.depth import UnlearningDepth, depth, erased
from routed_rl.unlearning.scores.knowledge import Knowledge, RetainedKnowledge, states
from routed_rl.unlearning.scores.lens import LogitLens, LogitLensProbability
from routed_rl.unlearning.scores.membership import (
    MembershipInference,
    MembershipLoss,
    MembershipMinK,
    MembershipMinKPlusPlus,
    MembershipReference,
    MembershipZlib,
    PrivacyLeakage,
    area_under_curve,
    leakage,
    lowest_mean,
    standardised,
    zlib_ratio,
)
from routed_rl.unlearning.scores.memorisation import (
    ExactMemorisation,
    ExtractionStrength,
    exact_memorisation,
    extraction_strength,
)
from routed_rl.unlearning.scores.meta import Trust, faithfulness, following, rising, stability, trust
from routed_rl.unlearning.scores.probability import (
    ParaphrasedProbability,
    Probability,
    RetainedProbability,
    probability,
)
from routed_rl.unlearning.scores.probe import LinearProbe, probe_accuracy
from routed_rl.unlearning.scores.reader import Reader, Tokens
from routed_rl.unlearning.scores.rouge import (
    KnowledgeMemorisation,
    RetainedKnowledgeMemorisation,
    RetainedRougeRecall,
    RougeRecall,
    VerbatimMemorisation,
    rouge_l,
)
from routed_rl.unlearning.scores.score import Best, MeanScore, Numbers, Score, SetScore, interval
from routed_rl.unlearning.scores.tasks import Mmlu, TaskScore, WmdpBio, WmdpChem, WmdpCyber
from routed_rl.unlearning.scores.truth_ratio import (
    ForgetQuality,
    LogForgetQuality,
    RetainedTruthRatio,
    TruthRatio,
    closeness,
    log_truth_ratio,
    preference,
    same_distribution,
)
from routed_rl.unlearning.scores.utility import ModelUtility, harmonic_mean

require("lm", "scipy", "sklearn")

SCORES: Mapping[str, type[Score]] = {
    "knowledge": Knowledge,
    "retained-knowledge": RetainedKnowledge,
    "extraction-strength": ExtractionStrength,
    "exact-memorisation": ExactMemorisation,
    "probability": Probability,
    "retained-probability": RetainedProbability,
    "paraphrased-probability": ParaphrasedProbability,
    "normalised-probability": NormalisedProbability,
    "truth-ratio": TruthRatio,
    "retained-truth-ratio": RetainedTruthRatio,
    "forget-quality": ForgetQuality,
    "log-forget-quality": LogForgetQuality,
    "rouge-recall": RougeRecall,
    "retained-rouge-recall": RetainedRougeRecall,
    "knowledge-memorisation": KnowledgeMemorisation,
    "retained-knowledge-memorisation": RetainedKnowledgeMemorisation,
    "verbatim-memorisation": VerbatimMemorisation,
    "model-utility": ModelUtility,
    "multiple-choice": MultipleChoice,
    "multiple-choice-total": MultipleChoiceTotal,
    "retained-multiple-choice": RetainedMultipleChoice,
    "membership-loss": MembershipLoss,
    "membership-zlib": MembershipZlib,
    "membership-min-k": MembershipMinK,
    "membership-min-k-plus-plus": MembershipMinKPlusPlus,
    "membership-reference": MembershipReference,
    "privacy-leakage": PrivacyLeakage,
    "linear-probe": LinearProbe,
    "logit-lens": LogitLens,
    "logit-lens-probability": LogitLensProbability,
    "unlearning-depth": UnlearningDepth,
}
"""The scores by name."""
TASKS: Mapping[str, type[Score]] = {
    "wmdp-bio": WmdpBio,
    "wmdp-cyber": WmdpCyber,
    "wmdp-chem": WmdpChem,
    "mmlu": Mmlu,
}
"""Scores of lm-eval's tasks, by name. They ask their own questions, so they are measured only if they are named."""
ALL_SCORES: Registry[Score] = Registry("score", Score, {**SCORES, **TASKS}, "routed_rl.scores")
"""All scores that can be named: those above, those of installed packages, and the user's own."""

__all__ = [
    "SCORES",
    "TASKS",
    "Best",
    "ExactMemorisation",
    "ExtractionStrength",
    "ForgetQuality",
    "Knowledge",
    "KnowledgeMemorisation",
    "LinearProbe",
    "LogForgetQuality",
    "LogitLens",
    "LogitLensProbability",
    "MeanScore",
    "MembershipInference",
    "MembershipLoss",
    "MembershipMinK",
    "MembershipMinKPlusPlus",
    "MembershipReference",
    "MembershipZlib",
    "Mmlu",
    "ModelUtility",
    "MultipleChoice",
    "MultipleChoiceTotal",
    "NormalisedProbability",
    "Numbers",
    "ParaphrasedProbability",
    "PrivacyLeakage",
    "Probability",
    "Reader",
    "RetainedKnowledge",
    "RetainedKnowledgeMemorisation",
    "RetainedMultipleChoice",
    "RetainedProbability",
    "RetainedRougeRecall",
    "RetainedTruthRatio",
    "RougeRecall",
    "Score",
    "SetScore",
    "TaskScore",
    "Tokens",
    "Trust",
    "TruthRatio",
    "UnlearningDepth",
    "VerbatimMemorisation",
    "WmdpBio",
    "WmdpChem",
    "WmdpCyber",
    "area_under_curve",
    "chosen",
    "closeness",
    "depth",
    "erased",
    "exact_memorisation",
    "extraction_strength",
    "faithfulness",
    "following",
    "harmonic_mean",
    "interval",
    "leakage",
    "log_truth_ratio",
    "lowest_mean",
    "normalised_probability",
    "preference",
    "probability",
    "probe_accuracy",
    "rising",
    "rouge_l",
    "same_distribution",
    "stability",
    "standardised",
    "states",
    "trust",
    "zlib_ratio",
]
