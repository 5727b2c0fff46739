"""Scores: what a model knows of a benchmark. Each is pure arithmetic on probabilities and written texts."""

from collections.abc import Mapping

from routed_rl.plugins import Registry
from routed_rl.unlearning.scores.knowledge import Knowledge, RetainedKnowledge
from routed_rl.unlearning.scores.reader import Reader, Tokens
from routed_rl.unlearning.scores.score import Best, Numbers, Score, interval

SCORES: Mapping[str, type[Score]] = {
    "knowledge": Knowledge,
    "retained-knowledge": RetainedKnowledge,
}
"""The scores by name."""
ALL_SCORES: Registry[Score] = Registry("score", Score, SCORES, "routed_rl.scores")
"""All scores that can be named: those above, those of installed packages, and the user's own."""

__all__ = [
    "ALL_SCORES",
    "SCORES",
    "Best",
    "Knowledge",
    "Numbers",
    "Reader",
    "RetainedKnowledge",
    "Score",
    "Tokens",
    "interval",
]
