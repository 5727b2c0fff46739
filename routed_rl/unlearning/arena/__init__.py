"""The unlearning arena: methods, what follows them, and attacks on a benchmark, in one table."""

from routed_rl.unlearning.arena.attacks import ARENA_ATTACKS, ArenaAttack
from routed_rl.unlearning.arena.study import ArenaStudy

__all__ = ["ARENA_ATTACKS", "ArenaAttack", "ArenaStudy"]
