"""Options of quickstart, evaluate, watch and curves: a class is a command, a field an option."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from routed_rl.experiments.common.agents.options import CONTRAST
from routed_rl.options import RUNS


@dataclass(frozen=True)
class Steered:
    """A trained agent, and how it is steered."""

    directory: Annotated[Path, tyro.conf.arg(name="dir"), tyro.conf.Positional]
    """run directory"""
    steer: str | None = None
    """act with this module alone"""
    ablate: str | None = None
    """delete this module"""
    avoid: str | None = None
    """with --steer: stay away from what this module would do (contrastive steering)"""
    strength: float = CONTRAST
    """how strongly --avoid pushes"""
    greedy: bool = False
    """take the most likely action instead of sampling"""


@dataclass(frozen=True)
class Evaluate(Steered):
    """Play a trained agent in fresh environments and print its true returns and outcomes."""

    seed: int = 0
    """fixes the environments and the actions"""
    n_envs: int | None = None
    """fresh environments; None: 2048 in the gridworld, 256 on MiniGrid"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True)
class Watch(Steered):
    """Watch a trained agent play, in the terminal or as a GIF."""

    gif: Path | None = None
    """write an animation here instead of printing"""
    episodes: int = 5
    """how many episodes to play"""
    fps: float = 4.0
    """frames per second"""
    seed: int = 0
    """fixes the episodes and the actions"""


@dataclass(frozen=True)
class Quickstart:
    """See the idea in two minutes: train a routed and a naive agent, compare them, draw what they do."""

    oversight: float = 0.05
    """probability that a terminal is overseen"""
    seed: int = 0
    """fixes everything random"""
    total_steps: int = 2_000_000
    """environment steps of each agent"""
    out: Path = RUNS / "quickstart"
    """where runs and figure go"""
    workers: int = min(2, os.cpu_count() or 1)
    """agents trained at once, one process and one thread each"""
    force: bool = False
    """start over; the old runs are kept under another name"""


@dataclass(frozen=True)
class Curves:
    """Draw the learning curves of runs, finished or not, in one figure; oracle-filtered's steps over its oversight."""

    directories: Annotated[tuple[Path, ...], tyro.conf.arg(name="dirs"), tyro.conf.Positional]
    """run directories"""
    figure: Path = Path("curves.png")
    """where the figure goes"""
    policy: str | None = None
    """steer:NAME or unsteered; None: steered to Diamond where a run can be, else unsteered"""
