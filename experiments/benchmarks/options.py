"""Options of ``routed-rl benchmark``: a field is an option, its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Benchmark:
    """Measure speed, as ratios within this run: environments, training against its peers, where the time goes."""

    repeats: int = 5
    """how often every case takes its turn; medians are reported"""
    runs: tuple[Path, ...] = ()
    """run directories (quick and paper, say, at the same oversight) to compare by their steps to a return of 0.50"""
    json: bool = False
    """print JSON"""
    device: Literal["cpu", "cuda"] = "cpu"
    """what is measured: this processor, or a GPU. On a GPU each row is printed as one line of JSON as soon as it is
    there"""
    minutes: float = 7.0
    """on a GPU: begin no further row after this time"""
