"""Reward hacking of language models under partial oversight: worlds, methods, and a study that compares them."""

from routed_rl.extras import require

require("trl", "trl")

from routed_rl.lm.hacking.code_world import OverwritableTests
from routed_rl.lm.hacking.registry import WORLDS
from routed_rl.lm.hacking.study import HackingStudy
from routed_rl.lm.hacking.worlds import FINE, HACK, SOLVED, UNFLAGGED, WRONG, HackingWorld

__all__ = [
    "FINE",
    "HACK",
    "SOLVED",
    "UNFLAGGED",
    "WORLDS",
    "WRONG",
    "HackingStudy",
    "HackingWorld",
    "OverwritableTests",
]
