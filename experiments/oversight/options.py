"""Options of ``routed-rl oversight``. A field is an option, and its docstring is the help text."""

from __future__ import annotations

from dataclasses import dataclass

from routed_rl.experiments.common.agents.options import PresetName, WorldName
from routed_rl.options import Workers
from routed_rl.options.oversight import StudyOptions


@dataclass(frozen=True)
class Oversight(StudyOptions, Workers):
    """Compare methods over oversight levels and seeds in tables and figures. An interrupted study continues."""

    world: WorldName | None = None
    """world, as for train; None: the world of the preset"""
    preset: PresetName | None = None
    """set of default hyperparameters, as for train; None: "quick", or "own" with --env"""
