"""Options of ``routed-rl undo``: a field is an option, its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass

from routed_rl.options import Workers
from routed_rl.options.undo import UndoOptions


@dataclass(frozen=True)
class Undo(Workers, UndoOptions):
    """Make a model forget, and keep it so: suppress, noise, distil, attack; runs only what has changed, and goes on
    where it stopped."""

    plan: bool = False
    """say what would run, and why, and run nothing"""
