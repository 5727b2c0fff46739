"""The figures of a study: true return by oversight level, learning curves, bars, label noise."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from routed_rl.options.oversight import MethodName
from routed_rl.rl.oversight_study.methods import NOISE, PREDICTED, STRICT
from routed_rl.rl.oversight_study.table import NAIVE, SHOWN, Limits, compared, label_of, learning_curve
from routed_rl.runs.figures import GREYS, MARKERS, MOST, PALETTE, draw_means, in_panels, over_seeds, subplots
from routed_rl.runs.style import label_ends, styled
from routed_rl.runs.tables import half_interval, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST_NAIVE = "optimum of the naive training reward (exact)"
ROUTED, CONTRASTIVE, SHARPENED = SHOWN.values()
COLOURS = {
    ROUTED: PALETTE["blue"],
    PREDICTED: PALETTE["indigo"],
    "reward-model": PALETTE["teal"],
    "naive": PALETTE["vermillion"],
    "naive-early-stopped": PALETTE["orange"],
    "filtering": PALETTE["wine"],
    "oracle": PALETTE["black"],
    CONTRASTIVE: PALETTE["sky"],
}
"""Colours of methods, the same in all figures."""
OWN = [PALETTE[name] for name in ("pink", "brown", "sky")]
"""Colours of methods of the user's own."""
CONTROLS = (*(name for name in get_args(MethodName) if name not in (*COLOURS, "routing")), STRICT)
PREDICTIONS = (PREDICTED, "reward-model")
"""Methods with an outcome model."""
BESIDE = (ROUTED, "oracle")
"""What they are compared with."""
NOISES = {"lost labels": PALETTE["blue"], "wrong labels": PALETTE["vermillion"]}
Looks = Mapping[str, Mapping[str, Any]]
"""Colour, marker and line of each label."""


def looks(methods: Iterable[str]) -> Looks:
    """Return the look of each label, the same in all figures of a study. Controls are grey and dashed.

    Args:
        methods: the names of all methods of the study.
    """
    own = [name for name in methods if name not in (*COLOURS, *CONTROLS, "routing") and not NOISE.fullmatch(name)]
    controls = [*CONTROLS, *(name for name in methods if NOISE.fullmatch(name))]
    colours = {**COLOURS, **dict(zip(own, itertools.cycle(OWN), strict=False))}
    shown = {name: {"color": colour, "linestyle": "-"} for name, colour in colours.items()}
    shown |= {
        name: {"color": grey, "linestyle": "--"} for name, grey in zip(controls, itertools.cycle(GREYS), strict=False)
    }
    found: dict[str, dict[str, Any]] = {
        name: {**look, "marker": marker}
        for (name, look), marker in zip(shown.items(), itertools.cycle(MARKERS), strict=False)
    }
    # The control of contrastive steering often lies on the curve of ROUTED: one can see through it.
    found[SHARPENED] = {"color": GREYS[0], "linestyle": ":", "marker": "o", "markersize": 7, "markerfacecolor": "none"}
    return found


def panels(labels: Iterable[str], looks: Looks) -> list[tuple[str, list[str]]]:
    """Return the titles and the labels of panels: methods, other ways to steer a routed agent, and controls.

    Methods with an outcome model have a panel of their own: they end where the oracle does.
    """
    ordered = sorted(set(labels), key=list(looks).index)
    steered = [label for label in SHOWN.values() if label in ordered]
    controls = [label for label in ordered if looks[label]["linestyle"] == "--"]
    others = [label for label in ordered if label not in (CONTRASTIVE, SHARPENED, *controls, *PREDICTIONS)]
    predicted = [label for label in ordered if label in PREDICTIONS]
    if predicted:
        predicted = [label for label in ordered if label in (*BESIDE, *PREDICTIONS)]
    found = [("Methods", list(part)) for part in in_panels(others, MOST - 1) if not {*part} <= {*predicted}]
    found += [("Methods with an outcome model", predicted)] * bool(predicted)
    found += [("One routed agent, steered in several ways", steered)] * (len(steered) > 1)
    beside = [ROUTED] if ROUTED in ordered else []
    return found + [("Controls", [*beside, *part]) for part in in_panels(controls, 6)]


@styled()
def draw_returns(frame: pd.DataFrame, wanted: str, exact: Limits | None, looks: Looks) -> Figure:
    """True return by oversight level (log axis): mean, 95 % confidence interval and exact limits."""
    shown = compared(frame, wanted)
    levels = np.array(sorted(shown.oversight.unique()))
    figure, drawn = _stacked(panels(shown.label, looks))
    for axes, labels in drawn:
        axes.set_xscale("log")
        for place, label in enumerate(labels):
            rows = shown[shown.label == label].groupby("oversight").true_return
            x = 100 * np.array(list(rows.groups)) * 1.015 ** (place - (len(labels) - 1) / 2)  # side by side
            draw_means(axes, x, [values.to_numpy() for _, values in rows], label=label, **looks[label])
        if exact is not None and NAIVE in exact(levels[0]) and "naive" in labels:
            dense = np.geomspace(levels[0], max(levels[-1], levels[0] * 1.01), 12 if len(levels) > 1 else 2)
            naive = [exact(float(level))[NAIVE] for level in dense]
            axes.plot(100 * dense, naive, color=COLOURS["naive"], linestyle=":", label=BEST_NAIVE)
        _draw_limits(axes, None if exact is None else exact(levels[0]))
        axes.set_xticks(100 * levels, [f"{100 * level:g}" for level in levels], minor=False)
        if len(levels) == 1:
            axes.set_xlim(50 * levels[0], 200 * levels[0])  # else the places side by side look like levels
        axes.minorticks_off()
    drawn[-1][0].set_xlabel("oversight level: outcomes that the overseer sees (%)")
    seeds = shown.groupby(["label", "oversight"]).seed.nunique()
    figure.suptitle(f"True return by oversight level: {over_seeds(seeds)}")
    _name_limits(figure, None if exact is None else exact(levels[0]))
    label_ends(figure)
    return figure


@styled()
def draw_curves(
    runs: Mapping[tuple[str, str], Sequence[Path]], focus: float, exact: Limits | None, looks: Looks
) -> Figure:
    """Learning curves at one oversight level: mean over seeds and 95 % confidence interval.

    Args:
        runs: run directories by method and policy.
    """
    keys = {label_of(*key): key for key in runs}
    figure, drawn = _stacked(panels(keys, looks))
    for axes, labels in drawn:
        for place, label in enumerate(labels):
            curves = [learning_curve(run, keys[label][1]) for run in runs[keys[label]]]
            points = min(len(curve) for curve in curves)
            steps = np.array([step for step, _ in curves[0][:points]]) / 1e6
            values = np.array([[value for _, value in curve[:points]] for curve in curves])
            every = max(1, points // 8)
            some = slice(place * every // len(labels), None, every)  # bars of different curves stand side by side
            draw_means(axes, steps, values.T, bars=some, markevery=some, label=label, **looks[label])
        if exact is not None and NAIVE in exact(focus) and "naive" in labels:
            axes.axhline(exact(focus)[NAIVE], color=COLOURS["naive"], linestyle=":", label=BEST_NAIVE)
        _draw_limits(axes, None if exact is None else exact(focus))
    drawn[-1][0].set_xlabel("environment steps (millions)")
    seeds = over_seeds(len(of) for of in runs.values())
    figure.suptitle(f"Learning curves at oversight level {percent(focus)}: {seeds}")
    _name_limits(figure, None if exact is None else exact(focus))
    label_ends(figure)
    return figure


@styled()
def draw_bars(frame: pd.DataFrame, wanted: str, focus: float, exact: Limits | None, looks: Looks) -> Figure:
    """All methods at one oversight level, and all controls below: mean, 95 % confidence interval, and each seed."""
    from matplotlib.collections import LineCollection

    shown = compared(frame, wanted)
    shown = shown[shown.oversight == focus]
    means = shown.groupby("label").true_return.mean().sort_values()
    is_control = [looks[label]["linestyle"] != "-" for label in means.index]
    groups = {"Methods": means[~np.array(is_control)], "Controls": means[is_control]}
    groups = {title: rows for title, rows in groups.items() if len(rows)}
    sizes = [len(rows) for rows in groups.values()]
    height = 1.4 + 0.25 * sum(sizes) + 0.3 * len(sizes)
    figure, plots = subplots(len(sizes), height=height, sharex=True, squeeze=False, height_ratios=sizes)
    for axes, (title, rows) in zip(plots[:, 0], groups.items(), strict=True):
        colours = [GREYS[2] if title == "Controls" else looks[label]["color"] for label in rows.index]
        axes.barh(range(len(rows)), rows, 0.6, color=colours, alpha=0.7)
        for place, label in enumerate(rows.index):
            values = shown[shown.label == label].true_return.to_numpy()
            if len(values) > 2:
                half, mean = half_interval(values), rows[label]
                axes.add_collection(
                    LineCollection([[(mean - half, place), (mean + half, place)]], colors="black", linewidths=1),
                    autolim=False,
                )
            axes.plot(values, np.full(len(values), place), "o", markersize=3, color="black", mfc="white", mew=0.7)
        for style, _, value in [] if exact is None else _fixed(exact(focus)):
            axes.axvline(value, color=GREYS[1], linestyle=style, linewidth=1)
        axes.axvline(0, color=GREYS[3], linewidth=0.8)
        axes.set_yticks(range(len(rows)), rows.index)
        axes.set_title(title)
    axes.set_xlabel("true return")
    _name_limits(figure, None if exact is None else exact(focus))
    seeds = over_seeds(shown.groupby("label").seed.nunique())
    figure.suptitle(f"Oversight level {percent(focus)}: {seeds}; circles: seeds")
    return figure


@styled()
def draw_noise(noise: pd.DataFrame, wanted: str, focus: float) -> Figure:
    """True return by rate of lost and of wrong labels, when steered to the wanted outcome.

    Args:
        noise: columns ``kind``, ``rate``, ``policy``, ``true_return``.
    """
    figure, axes = subplots(height=3.6)
    noise = noise[noise.policy == f"steer:{wanted}"]
    for place, (kind, rows) in enumerate(noise.groupby("kind")):
        samples = {100 * rate + 0.4 * place: of.to_numpy() for rate, of in rows.groupby("rate").true_return}
        what, _, more = str(kind).partition(", ")
        look: dict[str, Any] = {"color": NOISES[what], "linestyle": "--" if more else "-", "marker": MARKERS[place]}
        draw_means(axes, list(samples), list(samples.values()), label=kind, mfc="white" if more else None, **look)
    axes.axhline(0, color=GREYS[3], linewidth=0.8)
    axes.set(xlabel="rate of lost or wrong labels (%)", ylabel=f"true return when steered to {wanted.capitalize()}")
    seeds = over_seeds(noise.groupby(["kind", "rate"]).seed.nunique())
    figure.suptitle(f"Label noise at oversight level {percent(focus)}: {seeds}")
    label_ends(figure, 20)
    return figure


def _stacked(parts: Sequence[tuple[str, list[str]]]) -> tuple[Figure, list[tuple[Any, list[str]]]]:
    """Return a figure with a panel for each part, one below the other, and the axes with the labels of each."""
    sizes = [1.4 + 0.3 * len(labels) for _, labels in parts]
    figure, plots = subplots(len(parts), height=0.5 + sum(sizes), sharex=True, squeeze=False, height_ratios=sizes)
    for axes, (title, _) in zip(plots[:, 0], parts, strict=True):
        axes.set(title=title, ylabel="true return")
    return figure, [(axes, labels) for axes, (_, labels) in zip(plots[:, 0], parts, strict=True)]


def _draw_limits(axes: Any, exact: Mapping[str, float] | None) -> None:
    """Draw the zero line and the exact limits, where they are near the curves."""
    low, high = axes.get_ylim()
    margin = 0.15 * (high - low)
    limits = [(style, GREYS[1], value) for style, _, value in ([] if exact is None else _fixed(exact))]
    for style, colour, value in [("-", GREYS[3], 0.0), *limits]:
        if low - margin <= value <= high + margin:
            axes.axhline(value, color=colour, linestyle=style, linewidth=0.9, zorder=1)


def _name_limits(figure: Figure, exact: Mapping[str, float] | None) -> None:
    """Name the lines of exact limits below the panels: beside the curves, they would push labels away from ends."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": GREYS[1], "linewidth": 0.9}
    lines = [
        Line2D([], [], linestyle=style, label=f"{title}: {round(value, 3) + 0.0:.3f}", **look)
        for style, title, value in ([] if exact is None else _fixed(exact))
    ]
    if lines:
        figure.legend(handles=lines, loc="outside lower center", ncols=3, title="Exact true returns")


def _fixed(exact: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """The style, title and value of each limit that does not depend on the oversight level."""
    fixed = [(title, value) for title, value in exact.items() if title != NAIVE]
    return [(style, *limit) for style, limit in zip(itertools.cycle(("--", "-.", ":")), fixed, strict=False)]
