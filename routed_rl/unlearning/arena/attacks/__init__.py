"""The arena's attacks, by name."""

from collections.abc import Mapping

from routed_rl.plugins import Registry
from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim
from routed_rl.unlearning.arena.attacks.embedding_noise import EmbeddingNoise
from routed_rl.unlearning.arena.attacks.few_examples import FewExamples
from routed_rl.unlearning.arena.attacks.few_shot import FewShot
from routed_rl.unlearning.arena.attacks.fine_tuning import FineTuning
from routed_rl.unlearning.arena.attacks.held_out_facts import HeldOutFacts
from routed_rl.unlearning.arena.attacks.interpolation import Interpolation
from routed_rl.unlearning.arena.attacks.low_rank import LowRank
from routed_rl.unlearning.arena.attacks.prefix import Prefix
from routed_rl.unlearning.arena.attacks.pruning import Pruning
from routed_rl.unlearning.arena.attacks.quantisation import Quantisation
from routed_rl.unlearning.arena.attacks.retain_only import RetainOnly
from routed_rl.unlearning.arena.attacks.suffix import Suffix

ARENA_ATTACKS: Mapping[str, type[ArenaAttack]] = {
    "fine-tuning": FineTuning,
    "low-rank": LowRank,
    "retain-only": RetainOnly,
    "few-examples": FewExamples,
    "held-out-facts": HeldOutFacts,
    "quantisation": Quantisation,
    "pruning": Pruning,
    "interpolation": Interpolation,
    "few-shot": FewShot,
    "prefix": Prefix,
    "suffix": Suffix,
    "embedding-noise": EmbeddingNoise,
}
"""The attacks by name."""
ALL_ATTACKS: Registry[ArenaAttack] = Registry("attack", ArenaAttack, ARENA_ATTACKS, "routed_rl.arena_attacks")
"""All attacks that can be named: those above, those of installed packages, and the user's own."""

__all__ = [
    "ALL_ATTACKS",
    "ARENA_ATTACKS",
    "ArenaAttack",
    "EmbeddingNoise",
    "FewExamples",
    "FewShot",
    "FineTuning",
    "Group",
    "HeldOutFacts",
    "Interpolation",
    "Look",
    "LowRank",
    "Prefix",
    "Pruning",
    "Quantisation",
    "RetainOnly",
    "Setting",
    "Suffix",
    "Victim",
]
