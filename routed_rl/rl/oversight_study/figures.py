"""The figures of a study: true return by oversight level, learning curves, bars, label noise, arrow plots."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from routed_rl.options.oversight import MethodName
from routed_rl.rl.oversight_study.table import NAIVE, SHOWN, Limits, compared, label_of, learning_curve
from routed_rl.runs.figures import COLOURS, MARKERS, colormap, ranked, subplots
from routed_rl.runs.tables import aggregate, half_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST_NAIVE = "asymptote of naive: optimum\nof its training reward (exact)"
ROUTED = ("#2a9d8f", "#1d3557", "#8ab17d")
FIXED = dict(zip(SHOWN.values(), ROUTED, strict=True)) | {"naive": COLOURS["naive"]}
OTHERS = (*(name for name in get_args(MethodName) if name not in ("routing", "naive")), "strict", "routing-predicted")


def colour(label: str) -> Any:
    """The colour of a method, the same in all figures of all studies. Methods with label noise are grey."""
    if label in FIXED:
        return FIXED[label]
    return colormap("tab20")(OTHERS.index(label)) if label in OTHERS else "#6c757d"


def marker(label: str) -> str:
    """The marker of a method, the same in all figures of all studies."""
    known = (*FIXED, *OTHERS)
    return MARKERS[known.index(label) % len(MARKERS)] if label in known else "."


def _range(values: Sequence[float] | pd.Series, low: float) -> tuple[float, float]:
    """The limits of an axis of true returns: from ``low`` to 1, or wider where values lie outside."""
    return min(low, min(values) * 1.05), max(1.0, max(values) * 1.05)


def draw_returns(frame: pd.DataFrame, wanted: str, exact: Limits | None) -> Figure:
    """True return by oversight level (log axis): mean, 95 % confidence interval and exact limits."""
    shown = compared(frame, wanted)
    levels = np.array(sorted(shown.oversight.unique()))
    figure, axes = subplots(figsize=(9.5, 4.8), layout="constrained")
    cells = aggregate(shown, "true_return", ["label", "oversight"]).groupby("label")
    for place, (label, rows) in enumerate(cells):
        x = 100 * rows.oversight * 1.02 ** (place - (len(cells) - 1) / 2)  # side by side, else intervals overlap
        axes.errorbar(
            x, rows["mean"], yerr=rows["half"], marker=marker(label), markersize=5, capsize=2, elinewidth=1,
            color=colour(label), label=label,
        )  # fmt: skip
    axes.set(xscale="log", ylabel="true return", ylim=_range(shown.true_return, -0.15))
    axes.set_xlabel("oversight level: outcomes that the overseer sees (%)")
    if exact is not None:
        if NAIVE in exact(levels[0]):
            dense = np.geomspace(levels[0], max(levels[-1], levels[0] * 1.01), 12 if len(levels) > 1 else 2)
            naive = [exact(float(level))[NAIVE] for level in dense]
            axes.plot(100 * dense, naive, color=colour("naive"), linestyle=":", label=BEST_NAIVE)
        _draw_limits(axes, exact(levels[0]))
    axes.set_xticks(100 * levels, [f"{100 * level:g}" for level in levels], minor=False)
    if len(levels) == 1:
        axes.set_xlim(50 * levels[0], 200 * levels[0])  # else the places side by side look like levels
    axes.minorticks_off()
    _finish(figure, axes, "True return by oversight level: mean and 95 % confidence interval over seeds")
    return figure


def draw_curves(runs: Mapping[tuple[str, str], Sequence[Path]], focus: float, exact: Limits | None) -> Figure:
    """Learning curves at one oversight level: mean over seeds and 95 % confidence interval.

    Args:
        runs: run directories by method and policy.
    """
    figure, axes = subplots(figsize=(9.5, 4.8), layout="constrained")
    labels = {key: label_of(*key) for key in runs}
    lowest_and_highest: list[float] = []
    for key, directories in runs.items():
        curves = [learning_curve(run, key[1]) for run in directories]
        points = min(len(curve) for curve in curves)
        steps = np.array([step for step, _ in curves[0][:points]]) / 1e6
        values = np.array([[value for _, value in curve[:points]] for curve in curves])
        mean = values.mean(axis=0)
        half = half_interval(values)
        lowest_and_highest += [float(mean.min()), float(mean.max())]
        axes.plot(
            steps, mean, color=colour(labels[key]), label=labels[key], marker=marker(labels[key]), markersize=5,
            markevery=max(1, points // 8),
        )  # fmt: skip
        axes.fill_between(steps, mean - half, mean + half, color=colour(labels[key]), alpha=0.15, linewidth=0)
    axes.set(xlabel="environment steps (millions)", ylabel="true return", ylim=_range(lowest_and_highest, -0.3))
    if exact is not None:
        if NAIVE in exact(focus):
            axes.axhline(exact(focus)[NAIVE], color=colour("naive"), linestyle=":", linewidth=1, label=BEST_NAIVE)
        _draw_limits(axes, exact(focus))
    _finish(
        figure, axes, f"Learning curves at oversight level {focus:.1%}: mean and 95 % confidence interval over seeds"
    )
    return figure


def draw_bars(frame: pd.DataFrame, wanted: str, focus: float, exact: Limits | None) -> Figure:
    """All methods at one oversight level: mean, 95 % confidence interval, and each seed."""
    shown = compared(frame, wanted)
    shown = shown[shown.oversight == focus]
    rows = aggregate(shown, "true_return", ["label"]).sort_values("mean")
    fixed = [] if exact is None else _fixed(exact(focus))
    height = 0.9 + 0.34 * len(rows) + 0.18 * len(fixed)  # inches; the legend has a line for each limit
    figure, axes = subplots(figsize=(7.5, height), layout="constrained")
    places = np.arange(len(rows))
    axes.barh(places, rows["mean"], xerr=rows["half"], color=[colour(label) for label in rows.label], alpha=0.75)
    for place, label in enumerate(rows.label):
        values = shown[shown.label == label].true_return
        axes.scatter(values, np.full(len(values), place), s=9, color="#264653", zorder=3)
    for style, title, value in fixed:
        axes.axvline(value, color="#6c757d", linestyle=style, linewidth=1, label=f"{title} (exact)")
    if fixed:
        figure.legend(frameon=False, fontsize=7, loc="outside lower right")
    axes.axvline(0, color="#adb5bd", linewidth=0.8)
    axes.set_yticks(places, rows.label, fontsize=8)
    axes.set_xlabel("true return")
    title = f"Oversight level {focus:.1%}: mean (bar), 95 % confidence interval (line), seeds (dots)"
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_noise(noise: pd.DataFrame, wanted: str, focus: float) -> Figure:
    """True return by rate of lost and of wrong labels, when steered to the wanted outcome.

    Args:
        noise: columns ``kind``, ``rate``, ``policy``, ``true_return``.
    """
    figure, axes = subplots(figsize=(9.5, 4.4), layout="constrained")
    noise = noise[noise.policy == f"steer:{wanted}"]
    for place, (kind, rows) in enumerate(noise.groupby("kind")):
        cells = aggregate(rows, "true_return", ["rate"])
        axes.errorbar(
            100 * cells.rate + 0.3 * place, cells["mean"], yerr=cells["half"], marker=MARKERS[place],
            markersize=5, capsize=2, elinewidth=1, color=colormap("tab10")(place), label=kind,
        )  # fmt: skip
    axes.axhline(0, color="#adb5bd", linewidth=0.8)
    axes.set(xlabel="rate of lost or wrong labels (%)", ylabel=f"true return when steered to {wanted.capitalize()}")
    _finish(figure, axes, f"Label noise at oversight level {focus:.1%}: mean and 95 % confidence interval over seeds")
    return figure


def _draw_limits(axes: Any, exact: Mapping[str, float]) -> None:
    """Draw the exact limits as horizontal lines, with their names at the right edge."""
    for style, title, value in _fixed(exact):
        axes.axhline(value, color="#6c757d", linestyle=style, linewidth=1, zorder=1)
        text, place = textwrap.fill(f"{title} (exact)", 24), axes.get_yaxis_transform()
        axes.text(1.01, value, text, transform=place, va="center", fontsize=7, color="#495057")


def _fixed(exact: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """The style, title and value of each limit that does not depend on the oversight level."""
    fixed = [(title, value) for title, value in exact.items() if title != NAIVE]
    return [(style, *limit) for style, limit in zip(itertools.cycle(("--", "-.", ":")), fixed, strict=False)]


def _finish(figure: Any, axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.axhline(0, color="#adb5bd", linewidth=0.8)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(*ranked(axes), frameon=False, fontsize=8, loc="outside right upper")
    axes.spines[["top", "right"]].set_visible(False)
