"""Draw learning curves, and the actions of a policy in one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from routed_rl.envs import World, dynamics
from routed_rl.rl import RoutedActorCriticPolicy
from routed_rl.rl.oversight_study.figures import COLOURS as METHODS
from routed_rl.rl.oversight_study.figures import ROUTED
from routed_rl.runs.figures import MARKERS, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"diamond": METHODS[ROUTED], "ghost": PALETTE["pink"]}
"""Colours of outcomes, and of the agent that is steered to each of them."""
LAYOUT = {"ghost": 8, "diamond": 16}
"""Cells in the arrow plots: Ghost at the upper right, Diamond at the lower left, equally far from the centre."""
_ARROWS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])  # up, right, down, left as (x, y)


def draw_policy(axes: Axes, policy: RoutedActorCriticPolicy, world: World, cells: Mapping[str, int]) -> None:
    """Draw four arrows per free cell: the length of an arrow is the probability of its action. Nothing is overseen.

    Args:
        policy: the policy to draw, already steered.
        cells: the cell of each kind of terminal state.
    """
    terminals = [cells[name] for name in world.names]
    places = np.array([cell for cell in world.free if cell not in terminals])
    state = dynamics.State(
        key=np.zeros_like(places),
        episode=np.zeros_like(places),
        steps=np.zeros_like(places),
        agent=places,
        terminals=np.tile(terminals, (len(places), 1)),
        oversight=np.zeros((len(places), world.cells), dtype=bool),
    )
    with torch.no_grad():
        distribution = policy.get_distribution(torch.from_numpy(dynamics.observe(world, state)))
    probabilities = distribution.distribution.probs.numpy()
    rows, columns = np.divmod(places, world.width)
    for action, (x, y) in enumerate(_ARROWS):
        length = 0.47 * probabilities[:, action]
        axes.quiver(
            columns, rows, x * length, -y * length, angles="xy", scale_units="xy", scale=1,
            width=0.013, headwidth=3.2, headlength=2.6, headaxislength=2.6, color="black", zorder=3,
        )  # fmt: skip
    for name, cell in cells.items():
        row, column = divmod(cell, world.width)
        marker = {"diamond": "D", "ghost": "X"}.get(name, "o")
        axes.scatter(column, row, s=110, marker=marker, color=COLOURS.get(name), edgecolor="white", zorder=4)
    axes.set(
        xlim=(-0.5, world.width - 0.5), ylim=(world.height - 0.5, -0.5), aspect="equal", xticks=[], yticks=[]
    )  # fmt: skip
    axes.spines[:].set_visible(True)
    for line in range(1, max(world.height, world.width)):
        axes.axhline(line - 0.5, color="#dee2e6", linewidth=0.8, zorder=1)
        axes.axvline(line - 0.5, color="#dee2e6", linewidth=0.8, zorder=1)


def columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the steps and the returns of a learning curve, given its points (steps, return)."""
    return [steps for steps, _ in points], [value for _, value in points]


def draw_curves(axes: Axes, curves: Mapping[str, tuple[Sequence[float], Sequence[float], str | None]]) -> None:
    """Draw true return against environment steps. ``curves`` maps a label to (steps, returns, colour or None)."""
    for (label, (steps, returns, colour)), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(np.asarray(steps) / 1e6, returns, marker=marker, color=colour, label=label)
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set(xlabel="environment steps (millions)", ylabel="true return", ylim=(-1, 1))
