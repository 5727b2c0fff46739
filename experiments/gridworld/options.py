"""Options of quickstart, evaluate, watch and curves. A class is a command, a field is an option."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from routed_rl.experiments.common.agents.options import WorldName
from routed_rl.options import RUNS
from routed_rl.options.oversight import CONTRAST
from routed_rl.plugins import PluginName


@dataclass(frozen=True)
class Steered:
    """A trained agent, and how to steer it."""

    directory: Annotated[Path, tyro.conf.arg(name="dir"), tyro.conf.Positional]
    """run directory of the trained agent, or a folder or file that model.save() has made"""
    world: WorldName | None = None
    """for a folder of model.save(): the world to act in; None: the world gridworld"""
    env: PluginName | None = None
    """for a folder of model.save(): an environment of your own to act in, as for train"""
    steer: str | None = None
    """act with this module only; None: as the model was saved, which is unsteered after training"""
    ablate: str | None = None
    """delete this module and act with the others; None: delete none"""
    avoid: str | None = None
    """with --steer: avoid the actions that this module prefers (contrastive steering); None: avoid none"""
    strength: float = CONTRAST
    """weight of the actions to avoid, for --avoid; a larger number avoids them more"""
    greedy: bool = False
    """take the most likely action instead of a sampled one"""


@dataclass(frozen=True)
class Evaluate(Steered):
    """Evaluate a trained agent in new environments: print its true return and where its episodes end."""

    seed: int = 0
    """random seed of the environments and the actions"""
    n_envs: int | None = None
    """number of new environments; None: 2048; 256 on MiniGrid; 100 in environments of others"""
    json: bool = False
    """print JSON instead of a table"""


@dataclass(frozen=True)
class Watch(Steered):
    """Show a trained agent while it plays, as text in the terminal or as a GIF."""

    gif: Path | None = None
    """write an animation to this .gif file; None: print the episodes as text"""
    beside: bool = False
    """with --gif: show the same agent without steering beside it, in the same episodes"""
    episodes: int = 5
    """number of episodes to play"""
    fps: float = 4.0
    """frames per second"""
    seed: int = 0
    """random seed of the episodes and the actions"""


@dataclass(frozen=True)
class Quickstart:
    """See the idea in two minutes: train a routed and a naive agent, compare their returns, draw their policies."""

    oversight: float = 0.05
    """oversight level: probability that a terminal state is overseen"""
    seed: int = 0
    """random seed of both runs"""
    total_steps: int = 2_000_000
    """environment steps per agent"""
    out: Path = RUNS / "quickstart"
    """directory of the two runs and the figure"""
    workers: int = min(2, os.cpu_count() or 1)
    """agents trained in parallel; each has one process with one thread"""
    force: bool = False
    """start again from zero; the old runs are renamed, not deleted"""


@dataclass(frozen=True)
class Curves:
    """Draw the learning curves of several runs in one figure.

    Unfinished runs are drawn too. The steps of an oracle-filtered run are divided by its oversight level.
    """

    directories: Annotated[tuple[Path, ...], tyro.conf.arg(name="dirs"), tyro.conf.Positional]
    """run directories, one curve each"""
    figure: Path = Path("curves.png")
    """file of the figure, ending in .png, .pdf or .svg"""
    policy: str | None = None
    """policy to draw, steer:NAME or unsteered; None: steered to the outcome of highest value, in runs with several
    modules, else unsteered"""
