"""Options of the command ``runs``. A class is a command, a field is an option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from routed_rl.options import RUNS


@dataclass(frozen=True)
class Runs:
    """List the runs and studies in a folder: which are finished, how far the others are, and their main results."""

    folder: Annotated[Path, tyro.conf.Positional] = RUNS
    """folder that holds runs and studies"""
    json: bool = False
    """print JSON instead of a table"""
