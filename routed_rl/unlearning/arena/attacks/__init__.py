"""The arena's attacks, by name."""

from collections.abc import Mapping

from routed_rl.plugins import Registry
from routed_rl.unlearning.arena.attacks.attack import ArenaAttack, Group, Look, Setting, Victim
from routed_rl.unlearning.arena.attacks.finetuning import FineTuning

ARENA_ATTACKS: Mapping[str, type[ArenaAttack]] = {
    "fine-tuning": FineTuning,
}
"""The attacks by name."""
ALL_ATTACKS: Registry[ArenaAttack] = Registry("attack", ArenaAttack, ARENA_ATTACKS, "routed_rl.arena_attacks")
"""All attacks that can be named: those above, those of installed packages, and the user's own."""

__all__ = ["ALL_ATTACKS", "ARENA_ATTACKS", "ArenaAttack", "FineTuning", "Group", "Look", "Setting", "Victim"]
