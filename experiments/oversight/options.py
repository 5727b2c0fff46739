"""Options of ``routed-rl oversight``: a field is an option, its docstring the help."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from routed_rl.experiments.common.agents.options import PresetName, WorldName
from routed_rl.options import RUNS


@dataclass(frozen=True)
class Oversight:
    """Compare methods over levels of oversight and seeds: a table, a summary and figures; goes on where it stopped."""

    methods: tuple[str, ...] = ("routing", "naive", "naive-early-stopped", "filtering", "oracle")
    """methods compared at every level: those of train, "strict" (routing, --unlabelled none), "miss-RATE" and
    "flip-RATE" (routing with lost or wrong labels; with "-hard" appended on long episodes)"""
    levels: tuple[float, ...] = (0.01, 0.03, 0.1, 0.4)
    """probabilities that a terminal is overseen"""
    controls: tuple[str, ...] = ()
    """further methods, at the focus level alone"""
    world: WorldName | None = None
    """as for train; None: the preset's"""
    focus: float | None = None
    """the level of controls, learning curves, bars and arrows; None: that nearest to 0.1"""
    seeds: int = 3
    """runs of each, with seeds 0, 1, …"""
    preset: PresetName = "quick"
    """family of hyperparameters"""
    total_steps: int | None = None
    """environment steps of each run; None: the preset's"""
    workers: int = min(2, os.cpu_count() or 1)
    """processes at once, one thread each"""
    parallel_seeds: int = 1
    """runs of a method, over seeds and levels, that a process trains as one batched computation: for a GPU"""
    device: Literal["cpu", "cuda"] = "cpu"
    """as for train"""
    backend: Literal["local", "ray"] = "local"
    """where they run: here, or as tasks of a Ray cluster, whose machines must all see --out"""
    ray_address: str | None = None
    """a running cluster's address; None: a Ray of its own, on this machine"""
    out: Path = RUNS / "oversight"
    """where runs, tables and figures go"""
