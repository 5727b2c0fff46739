"""Options of ``routed-rl undo``. A field is an option; its docstring is the help."""

from __future__ import annotations

from dataclasses import dataclass

from routed_rl.options import Workers
from routed_rl.options.undo import UndoOptions


@dataclass(frozen=True)
class Undo(Workers, UndoOptions):
    """Make a model forget, and make that robust (UNDO): suppress, add noise, distil, attack. Only what has changed is
    run, and an interrupted study continues."""

    plan: bool = False
    """run nothing; show which stages would run, and why"""
