"""Options of studies, as dataclasses. A field is an option of a command and of an object; its docstring is the help.

These modules import nothing heavy and no extra, so that ``--help`` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RUNS = Path("runs")
"""Default folder of all runs, below the working directory."""


@dataclass(frozen=True)
class Workers:
    """The processes that do the runs of a study."""

    workers: int | None = None
    """number of processes at once, one thread each; None: 2, or one per GPU with --device cuda"""
    backend: Literal["local", "ray"] = "local"
    """"local": processes on this machine; "ray": tasks of a Ray cluster, whose machines must all see --out"""
    ray_address: str | None = None
    """address of a running Ray cluster; None: start Ray on this machine"""
