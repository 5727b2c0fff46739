"""The figure of a study that knows the gridworld: what the policies of one routed run do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from routed_rl.experiments.common.agents import figures
from routed_rl.experiments.common.agents.worlds import load_run, make_env, world_of
from routed_rl.options.oversight import CONTRAST
from routed_rl.runs import read_run
from routed_rl.runs.figures import subplots
from routed_rl.runs.style import styled
from routed_rl.runs.tables import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled()
def draw_arrows(run: Path) -> Figure:
    """The actions of the policies of one routed run, in one grid where nothing is overseen."""
    model, config = load_run(run)
    world = world_of(make_env(config, 1, test=True))
    views: dict[str, dict[str, Any]] = {
        "unsteered": {},
        "steered to Ghost ✖": {"choice": "ghost"},
        "steered to Diamond ◆": {"choice": "diamond"},
        "steered to Diamond ◆,\navoids Ghost ✖": {"choice": "diamond", "avoid": {"ghost": CONTRAST}},
    }
    figure, plots = subplots(1, len(views), height=2.8)
    for axes, (title, steering) in zip(plots, views.items(), strict=True):
        with model.steered(**steering):
            figures.draw_policy(axes, model.policy, world, figures.LAYOUT)
        axes.set_title(title)
    level, seed = percent(config["oversight"]), read_run(run).seed
    figure.suptitle(f"Policies of one run: {config['method']}, oversight level {level}, seed {seed}")
    figure.supxlabel("arrow length: probability of the action; nothing is overseen in this grid")
    return figure
