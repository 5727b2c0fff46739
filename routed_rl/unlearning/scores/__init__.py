"""Scores: what a model knows of a benchmark. Each is pure arithmetic on probabilities and written texts."""

from collections.abc import Mapping

from routed_rl.extras import require
from routed_rl.plugins import Registry
from routed_rl.unlearning.scores.choices import (
    MultipleChoice,
    MultipleChoiceTotal,
    NormalisedProbability,
    RetainedMultipleChoice,
)
from routed_rl.unlearning.scores.depth import UnlearningDepth
from routed_rl.unlearning.scores.knowledge import Knowledge, RetainedKnowledge
from routed_rl.unlearning.scores.lens import LogitLens, LogitLensProbability
from routed_rl.unlearning.scores.membership import (
    MembershipInference,
    MembershipLoss,
    MembershipMinK,
    MembershipMinKPlusPlus,
    MembershipReference,
    MembershipZlib,
    PrivacyLeakage,
)
from routed_rl.unlearning.scores.memorisation import ExactMemorisation, ExtractionStrength
from routed_rl.unlearning.scores.meta import Trust, rising, trust
from routed_rl.unlearning.scores.probability import ParaphrasedProbability, Probability, RetainedProbability
from routed_rl.unlearning.scores.probe import LinearProbe
from routed_rl.unlearning.scores.reader import Reader, Tokens
from routed_rl.unlearning.scores.rouge import (
    KnowledgeMemorisation,
    RetainedKnowledgeMemorisation,
    RetainedRougeRecall,
    RougeRecall,
    VerbatimMemorisation,
)
from routed_rl.unlearning.scores.score import Best, MeanScore, Numbers, Score, SetScore, interval
from routed_rl.unlearning.scores.truth_ratio import ForgetQuality, LogForgetQuality, RetainedTruthRatio, TruthRatio
from routed_rl.unlearning.scores.utility import ModelUtility

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
ALL_SCORES: Registry[Score] = Registry("score", Score, SCORES, "routed_rl.scores")
"""All scores that can be named: those above, those of installed packages, and the user's own."""

__all__ = [
    "ALL_SCORES",
    "SCORES",
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
    "Tokens",
    "Trust",
    "TruthRatio",
    "UnlearningDepth",
    "VerbatimMemorisation",
    "interval",
    "rising",
    "trust",
]
