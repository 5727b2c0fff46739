"""Options of the demo. A class is a command, a field is an option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Demo:
    """Play with agents and results on a web page of this machine: place pieces, steer, ablate, look at studies.

    The page opens with two small agents that the package carries. It is served on 127.0.0.1 only.
    """

    directories: Annotated[tuple[Path, ...], tyro.conf.arg(name="dirs"), tyro.conf.Positional] = ()
    """directories of runs of agents, and of studies (oversight, era, undo, arena and others), to show as well"""
    port: int = 5006
    """port of the page; 0: any free one"""
    open: bool = True
    """whether to open the page in a browser"""
