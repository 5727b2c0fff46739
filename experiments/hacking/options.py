"""Options of ``routed-rl hacking``."""

from __future__ import annotations

from dataclasses import dataclass

from routed_rl.options import Workers
from routed_rl.options.hacking import HackingOptions


@dataclass(frozen=True)
class Hacking(Workers, HackingOptions):
    """Compare ways to keep a language model from exploiting its grader, if an overseer sees only some of its answers.
    An interrupted study continues."""

    quick: bool = False
    """one world, seven methods, 10 % oversight and one seed: a few minutes"""
    plan: bool = False
    """print the runs of the study and stop; nothing is trained"""
