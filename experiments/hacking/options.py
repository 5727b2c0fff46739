"""Options of ``routed-rl hacking``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from routed_rl.options import Workers
from routed_rl.options.hacking import HackingOptions


@dataclass(frozen=True)
class Hacking(Workers, HackingOptions):
    """Compare ways to keep a language model from exploiting its grader, if an overseer sees only some of its answers.
    An interrupted study continues."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "worlds": ("loophole",),
        "methods": (
            "plain", "oracle", "penalty", "filtering", "monitor-penalty", "routing-solo", "routing-predicted",
        ),
        "oversight": (0.1,),
        "relearned": (),
        "seeds": 1,
    }  # fmt: skip
    """Defaults with --quick."""

    quick: bool = False
    """a few minutes: one world, seven methods, 10 % oversight and one seed; other options still count"""
    plan: bool = False
    """print the runs of the study and stop; nothing is trained"""
