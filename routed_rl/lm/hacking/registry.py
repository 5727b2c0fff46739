"""The built-in hacking worlds by name, and how others are found."""

from __future__ import annotations

from collections.abc import Mapping

from routed_rl.lm.hacking.code_world import OverwritableTests
from routed_rl.lm.hacking.worlds import BlindSpot, Evaded, HackingWorld, Loophole, Watched
from routed_rl.plugins import Registry

WORLDS: Mapping[str, type[HackingWorld]] = {
    "loophole": Loophole,
    "watched": Watched,
    "evaded": Evaded,
    "blind-spot": BlindSpot,
    "code": OverwritableTests,
}
"""The built-in worlds."""
REGISTRY = Registry[HackingWorld]("hacking world", HackingWorld, WORLDS, "routed_rl.hacking_worlds")
