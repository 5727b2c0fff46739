"""Options of ``routed-rl benchmark``. A field is an option, and its docstring is the help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Benchmark:
    """Measure the speed of environments, training and routing, compared with other implementations."""

    repeats: int = 5
    """number of repeats per measurement; the median is reported"""
    runs: tuple[Path, ...] = ()
    """run directories to compare by their environment steps to a true return of 0.50, for example a quick and a paper
    run"""
    json: bool = False
    """print JSON instead of tables"""
    peers: bool = False
    """measure only our learner and environments and compiled programs of others, on one core: Stable-Baselines3, SBX,
    torch.compile, PPO as one JAX program, XLand-MiniGrid, Navix. Needs pip install 'routed-rl[peers]'; what is not
    installed is left out"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device to measure; "cuda" measures other rows and prints each row as one line of JSON when it is finished"""
    minutes: float = 7.0
    """with --device cuda: time in minutes after which no new row begins"""
