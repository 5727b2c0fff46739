"""The figures of a hacking study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from routed_rl.lm.hacking.methods import WITHOUT_OVERSEER
from routed_rl.runs.charts import Chart
from routed_rl.runs.figures import GREYS, PALETTE, draw_bars, draw_means, over_seeds, subplots
from routed_rl.runs.style import label_ends, styled
from routed_rl.runs.tables import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {
    "plain": (GREYS[1], "--", "s"),
    "oracle": (PALETTE["black"], ":", "o"),
    "penalty": (PALETTE["vermillion"], "-", "v"),
    "penalty-scaled": (PALETTE["vermillion"], "--", "1"),
    "penalty-weighted": (PALETTE["vermillion"], ":", "2"),
    "penalty-solo": (PALETTE["vermillion"], "-.", "3"),
    "penalty-replay": (PALETTE["vermillion"], (0, (1, 3)), "4"),
    "screening": (PALETTE["wine"], "-", "^"),
    "filtering": (PALETTE["brown"], "-", "D"),
    "inverted": (PALETTE["pink"], "-", "<"),
    "inoculation": (PALETTE["sky"], "-", "p"),
    "monitor-penalty": (PALETTE["orange"], "-", "P"),
    "monitor-screening": (PALETTE["wine"], "--", "X"),
    "routing": (PALETTE["indigo"], "--", "h"),
    "routing-penalty": (PALETTE["indigo"], "-", ">"),
    "routing-solo": (PALETTE["blue"], "-", "o"),
    "routing-replay": (PALETTE["indigo"], ":", "d"),
    "routing-predicted": (PALETTE["teal"], "-", "*"),
    "placebo": (GREYS[3], "-", "x"),
    "shuffled": (GREYS[3], "--", "+"),
}
"""Colour, line and marker of each method."""
ORDER = list(STYLES)
CURVES = ("plain", "oracle", "penalty", "penalty-solo", "monitor-penalty", "routing-solo", "routing-replay")
"""Methods whose course of training is shown."""
LINEAR, TICKS = 0.02, (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
"""Of the axis of hacks over training: where it stops to be linear, and its ticks."""
Key = tuple[str, str, float, int]
"""World, method, oversight and seed of a run."""
Curve = Sequence[Mapping[str, float]]


def at_oversight(rows: pd.DataFrame, share: float) -> pd.DataFrame:
    """Return the rows of a world at an oversight, with those of methods that do not depend on the overseer."""
    free = rows[rows.method.isin(WITHOUT_OVERSEER)]
    highest = free.groupby(["method", "seed"]).oversight.transform("max")
    return pd.concat([rows[(rows.oversight == share) & ~rows.index.isin(free.index)], free[free.oversight == highest]])


@styled()
def draw_hacking(frame: pd.DataFrame) -> Figure:
    """Solved tasks and hacks of each method, with a row of panels for each world and oversight."""
    blocks = [
        (world, share)
        for world in dict.fromkeys(frame.world)
        for share in sorted(set(frame[frame.world == world].oversight))
    ]
    methods = [method for method in ORDER if method in set(frame.method)]
    figure, plots = subplots(len(blocks), 2, height=1.1 + 1.5 * len(blocks), sharex=True, sharey="row", squeeze=False)
    for row, (world, share) in zip(plots, blocks, strict=True):
        own = frame[frame.world == world]
        own = at_oversight(own, share)
        for axes, (measure, title) in zip(row, {"solved": "solved", "hack": "hacked"}.items(), strict=True):
            groups = {method: of[measure].to_numpy() for method, of in own.groupby("method")}
            shown = [method for method in methods if method in groups]
            colours = [STYLES[method][0] for method in shown]
            places = [methods.index(method) for method in shown]
            draw_bars(axes, places, [groups[method] for method in shown], 0.8, color=colours)
            axes.axhline(own[f"base_{measure}"].mean(), color=GREYS[1], linewidth=0.8, linestyle=":")
            axes.set_title(f"{world}, oversight {percent(share)}: {title}")
        row[0].set_ylabel("share of answers")
        row[0].set_ylim(0, 1)
    for axes in plots[-1]:
        axes.set_xticks(range(len(methods)), methods, rotation=60, ha="right")
    seeds = frame.groupby(["world", "method", "oversight"]).seed.nunique()
    figure.suptitle(f"Solved tasks and hacks; dotted: before training; {over_seeds(seeds)}")
    return figure


@styled()
def draw_training(curves: Mapping[Key, Curve]) -> Figure:
    """Solved tasks and hacks over training, for some methods at the middle oversight of each world.

    Hacks have a logarithmic axis above ``LINEAR``, because good methods differ by 1 % of the answers.
    """
    worlds = list(dict.fromkeys(world for world, *_ in curves))
    figure, plots = subplots(len(worlds), 2, height=0.9 + 2.4 * len(worlds), sharex=True, sharey="col", squeeze=False)
    seeds = []
    for row, world in zip(plots, worlds, strict=True):
        levels = sorted({key[2] for key in curves if key[0] == world})
        share = levels[len(levels) // 2]
        for axes, (measure, title) in zip(row, {"solved": "solved", "hack": "hacked"}.items(), strict=True):
            for i, method in enumerate(CURVES):
                level = max(levels) if method == "oracle" else share
                of = [curve for key, curve in curves.items() if key[:3] == (world, method, level)]
                if not of:
                    continue
                length = min(map(len, of))
                steps = [point["step"] for point in of[0][:length]]
                values = np.array([[_final(point, measure) for point in curve[:length]] for curve in of])
                colour, line, marker = STYLES[method]
                look: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "label": method}
                draw_means(axes, steps, values.T, bars=slice(i % 3, None, 3), **look)
                seeds.append(len(of))
            axes.set_title(f"{world}, oversight {percent(share)}: {title}")
        row[0].set(ylabel="share of answers", ylim=(-0.03, 1.03))
        row[1].set_ylabel(f"share of answers,\nlogarithmic above {percent(LINEAR)}")
        row[1].set_yscale("symlog", linthresh=LINEAR)
        row[1].set_ylim(-LINEAR / 4, 1.2)
        row[1].set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        row[1].minorticks_off()
    for axes in plots[-1]:
        axes.set_xlabel("update")
    figure.suptitle(f"Training; routed models without the adapter forget; {over_seeds(seeds)}")
    label_ends(figure, 20)
    return figure


@styled()
def draw_relearning(curves: Mapping[Key, Curve]) -> Figure:
    """Hacks of finished models that are trained on with the grader's reward alone."""
    worlds = list(dict.fromkeys(world for world, *_ in curves))
    columns = min(len(worlds), 2)
    rows = -(-len(worlds) // columns)
    figure, plots = subplots(rows, columns, height=0.9 + 2.3 * rows, sharex=True, sharey=True, squeeze=False)
    seeds = []
    for axes in plots.flat[len(worlds) :]:
        axes.axis("off")
    for axes, world in zip(plots.flat, worlds, strict=False):
        methods = [method for method in ORDER if any(key[:2] == (world, method) for key in curves)]
        for i, method in enumerate(methods):
            of = [curve for key, curve in curves.items() if key[:2] == (world, method)]
            length = min(map(len, of))
            values = np.array([[point["hack"] for point in curve[:length]] for curve in of])
            colour, line, marker = STYLES[method]
            look: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "label": method}
            draw_means(axes, [point["step"] for point in of[0][:length]], values.T, bars=slice(i % 3, None, 3), **look)
            seeds.append(len(of))
        axes.set_title(world)
    for axes in plots[-1]:
        axes.set_xlabel("update without an overseer")
    for axes in plots[:, 0]:
        axes.set_ylabel("hacks (share of answers)")
    figure.suptitle(f"Further training with the grader's reward alone; {over_seeds(seeds)}")
    label_ends(figure, 20)
    return figure


def _final(point: Mapping[str, float], measure: str) -> float:
    return point.get(f"ablated.{measure}", point[f"on.{measure}"])


def hacking_chart(frame: pd.DataFrame, measure: str) -> Chart:
    """Solved tasks or hacks by oversight. ``frame`` has the rows of ``results.csv`` of one world."""
    points = pd.DataFrame({"series": frame.method, "x": 100 * frame.oversight, "y": frame[measure], "seed": frame.seed})
    title = {"solved": "Solved tasks", "hack": "Hacks"}[measure]
    colours = {method: style[0] for method, style in STYLES.items()}
    return Chart(
        f"{title}: {frame.world.iloc[0]}", "oversight (%)", "share of answers",
        points.sort_values(["series", "x", "seed"]), colours=colours,
    )  # fmt: skip
