"""Options of ``routed-rl arena``. A field is an option; its docstring is the help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from routed_rl.options import Workers
from routed_rl.options.arena import ArenaOptions


@dataclass(frozen=True)
class Arena(Workers, ArenaOptions):
    """Unlearn a benchmark by many methods, attack every model, and rank them in one table. Only what has changed is
    run, and an interrupted study continues."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "methods": ("graddiff", "npo", "maxent"),
        "attacks": ("fine-tuning",),
        "scores": ("knowledge", "extraction-strength", "forget-quality", "model-utility"),
        "budget": 60,
    }
    """Defaults with --quick."""

    quick: bool = False
    """a few minutes: three methods, one attack, four scores; other options still count"""
    plan: bool = False
    """run nothing; show which stages would run, and why"""
