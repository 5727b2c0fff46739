"""The unlearning arena: methods, what follows them, and attacks on a benchmark, in one table."""

from routed_rl.unlearning.arena.attacking import run_attack
from routed_rl.unlearning.arena.attacks import ARENA_ATTACKS, ArenaAttack, FineTuning, Look, Victim
from routed_rl.unlearning.arena.study import ArenaStudy

__all__ = ["ARENA_ATTACKS", "ArenaAttack", "ArenaStudy", "FineTuning", "Look", "Victim", "run_attack"]
