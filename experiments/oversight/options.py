"""Options of ``routed-rl oversight``. A field is an option, and its docstring is the help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from routed_rl.experiments.common.agents.options import PresetName, WorldName
from routed_rl.options import RUNS, Workers


@dataclass(frozen=True)
class Oversight(Workers):
    """Compare methods over oversight levels and seeds in tables and figures. An interrupted study continues."""

    methods: tuple[str, ...] = ("routing", "naive", "naive-early-stopped", "filtering", "reward-model", "oracle")
    """methods to compare at every oversight level: the methods of train; "routing-predicted": routing with
    --unlabelled predicted --learner.solo 1; "strict": routing with --unlabelled none; "miss-RATE", "flip-RATE":
    routing with this rate of lost or wrong labels; with "-hard" at the end, as in "flip-0.3-hard", the noise grows
    with the length of the episode"""
    levels: tuple[float, ...] = (0.01, 0.03, 0.1, 0.4)
    """oversight levels: probabilities that a terminal state is overseen"""
    controls: tuple[str, ...] = ()
    """more methods, trained at the --focus level only"""
    world: WorldName | None = None
    """world, as for train; None: the world of the preset"""
    focus: float | None = None
    """oversight level of the controls, the learning curves, the bars and the arrows; None: the level nearest
    to 0.1"""
    seeds: int = 3
    """number of runs per method and level, with seeds 0, 1, …"""
    preset: PresetName = "quick"
    """set of default hyperparameters, as for train"""
    total_steps: int | None = None
    """environment steps per run; None: the number of the preset"""
    parallel_seeds: int = 1
    """number of runs of one method that a process trains as one batched computation; useful on a GPU"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device of the environments, the rollouts and the learner, as for train"""
    out: Path = RUNS / "oversight"
    """directory of the runs, tables and figures"""
