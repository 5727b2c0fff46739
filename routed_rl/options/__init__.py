"""Options of studies, as dataclasses: a field is an option of a command and of an object, its docstring the help.

These modules import nothing heavy, so that ``--help`` is fast. They import no extra either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RUNS = Path("runs")
"""Where runs go unless told otherwise, below the working directory."""


@dataclass(frozen=True)
class Workers:
    """The processes that do the runs of a study."""

    workers: int | None = None
    """processes at once, one thread each; None: 2, or with --device cuda one per GPU"""
    backend: Literal["local", "ray"] = "local"
    """"local", processes on this machine; or "ray", tasks of a Ray cluster whose machines all see --out"""
    ray_address: str | None = None
    """address of a running Ray cluster; None: start Ray on this machine"""
