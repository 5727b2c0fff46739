"""The figures of a study: return against oversight, learning curves, methods as bars, label noise, arrows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from routed_rl.experiments.common.agents import figures
from routed_rl.experiments.common.agents.options import CONTRAST, MethodName
from routed_rl.experiments.common.agents.recipe import learning_curve, load_run, make_env, world_of
from routed_rl.experiments.common.tables import aggregate, half_interval
from routed_rl.experiments.oversight.study import SHOWN, WANTED, Limits, compared

EXACT = {"optimal": "optimum", "diamond": "seeks Diamond, blind to Ghost", "any": "any terminal"}


ROUTED = ("#2a9d8f", "#1d3557", "#8ab17d")
FIXED = dict(zip(SHOWN.values(), ROUTED, strict=True)) | {"naive": figures.COLOURS["naive"]}
OTHERS = (*(name for name in get_args(MethodName) if name not in ("routing", "naive")), "strict")


def colour(label: str) -> Any:
    """The colour of a method, the same in all figures of all studies; grey for labels with noise."""
    if label in FIXED:
        return FIXED[label]
    return plt.get_cmap("tab20")(OTHERS.index(label)) if label in OTHERS else "#6c757d"


def draw_returns(frame: pd.DataFrame, path: Path, exact: Limits | None) -> None:
    """True return against oversight (log axis): mean, 95 % interval (dark), 5 to 95 % quantiles (light), limits."""
    shown = compared(frame)
    if not len(shown):
        return
    levels = np.array(sorted(shown.oversight.unique()))
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for label, rows in aggregate(shown, "true_return", ["label", "oversight"]).groupby("label"):
        x, mean, half = 100 * rows.oversight, rows["mean"], rows["half"]
        axes.plot(x, mean, marker="o", markersize=4, color=colour(label), label=label)
        axes.fill_between(x, mean - half, mean + half, color=colour(label), alpha=0.3, linewidth=0)
        axes.fill_between(x, rows["low"], rows["high"], color=colour(label), alpha=0.12, linewidth=0)
    dense = np.geomspace(levels[0], max(levels[-1], levels[0] * 1.01), 12 if len(levels) > 1 else 2)
    if exact is not None:
        _draw_limits(axes, exact(levels[0]))
        naive = [exact(float(level))["naive"] for level in dense]
        axes.plot(100 * dense, naive, color=colour("naive"), linestyle=":", label="best under the naive reward, exact")
    axes.set(xscale="log", xlabel="terminals overseen (%)", ylabel="true return", ylim=(-0.15, 1))
    axes.set_xticks(100 * levels, [f"{100 * level:g}" for level in levels], minor=False)
    axes.minorticks_off()
    _finish(axes, "Return against oversight: mean, 95 % interval, 5–95 % quantiles")
    figures.save(figure, path)


def draw_curves(runs: Mapping[tuple[str, str], Sequence[Path]], focus: float, path: Path, exact: Limits | None) -> None:
    """Learning curves at one level, mean over seeds and 95 % interval.

    Args:
        runs: run directories by method and policy.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    labels = {key: SHOWN.get(key, key[0]) for key in runs}
    for key, directories in runs.items():
        curves = [learning_curve(run, key[1]) for run in directories]
        points = min(len(curve) for curve in curves)
        steps = np.array([step for step, _ in curves[0][:points]]) / 1e6
        values = np.array([[value for _, value in curve[:points]] for curve in curves])
        mean = values.mean(axis=0)
        half = half_interval(values)
        axes.plot(steps, mean, color=colour(labels[key]), label=labels[key])
        axes.fill_between(steps, mean - half, mean + half, color=colour(labels[key]), alpha=0.2, linewidth=0)
    if exact is not None:
        _draw_limits(axes, exact(focus))
        naive = exact(focus)["naive"]
        axes.axhline(
            naive, color=colour("naive"), linestyle=":", linewidth=1, label="best under the naive reward, exact"
        )
    axes.set(xlabel="environment steps (millions)", ylabel="true return", ylim=(-0.3, 1))
    _finish(axes, f"Learning curves at {focus:.1%} oversight: mean and 95 % interval")
    figures.save(figure, path)


def draw_bars(frame: pd.DataFrame, focus: float, path: Path, exact: Limits | None) -> None:
    """Every method at one level: mean, 95 % interval, and each seed."""
    shown = compared(frame)
    shown = shown[shown.oversight == focus]
    rows = aggregate(shown, "true_return", ["label"]).sort_values("mean")
    figure, axes = plt.subplots(figsize=(7.5, 0.6 + 0.34 * len(rows)), layout="constrained")
    places = np.arange(len(rows))
    axes.barh(places, rows["mean"], xerr=rows["half"], color=[colour(label) for label in rows.label], alpha=0.75)
    for place, label in enumerate(rows.label):
        values = shown[shown.label == label].true_return
        axes.scatter(values, np.full(len(values), place), s=9, color="#264653", zorder=3)
    if exact is not None:
        axes.axvline(exact(focus)["diamond"], color="#6c757d", linestyle=":", linewidth=1)
    axes.axvline(0, color="#adb5bd", linewidth=0.8)
    axes.set_yticks(places, rows.label, fontsize=8)
    axes.set_xlabel("true return")
    title = f"At {focus:.1%} oversight: mean, 95 % interval, each seed; dotted: seeks Diamond, blind to Ghost"
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figures.save(figure, path)


def draw_noise(noise: pd.DataFrame, focus: float, path: Path) -> None:
    """Return against the rate of lost and of wrong labels, steered to the wanted outcome.

    Args:
        noise: columns ``kind``, ``rate``, ``policy``, ``true_return``.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    noise = noise[noise.policy == f"steer:{WANTED}"]
    for (kind, rows), line in zip(noise.groupby("kind"), plt.get_cmap("tab10").colors, strict=False):
        cells = aggregate(rows, "true_return", ["rate"])
        axes.errorbar(
            100 * cells.rate, cells["mean"], yerr=cells["half"], marker="o", markersize=4, capsize=2, color=line,
            label=kind,
        )  # fmt: skip
    axes.axhline(0, color="#adb5bd", linewidth=0.8)
    axes.set(xlabel="rate of lost or wrong labels (%)", ylabel="true return, steered to Diamond")
    _finish(axes, f"Label noise at {focus:.1%} oversight: mean and 95 % interval")
    figures.save(figure, path)


def draw_arrows(run: Path, path: Path) -> None:
    """What one routed run does in one grid in which nothing is overseen, as each of its policies."""
    model, config = load_run(run)
    world = world_of(make_env(config, 1, test=True))
    views = {
        "unsteered": {},
        "steered to Ghost ✖": {"choice": "ghost"},
        "steered to Diamond ◆": {"choice": "diamond"},
        "to Diamond, away from Ghost": {"choice": "diamond", "avoid": {"ghost": CONTRAST}},
    }
    figure, plots = plt.subplots(1, len(views), figsize=(12, 3.3), layout="constrained")
    for axes, (title, steering) in zip(plots, views.items(), strict=True):
        with model.steered(**steering):
            figures.draw_policy(axes, model.policy, world, figures.LAYOUT)
        axes.set_title(title, fontsize=10)
    figures.save(figure, path)


def _draw_limits(axes: Any, exact: Mapping[str, float]) -> None:
    for (name, title), style in zip(EXACT.items(), ("--", "-.", ":"), strict=True):
        axes.axhline(exact[name], color="#6c757d", linestyle=style, linewidth=1, zorder=1, label=f"{title}, exact")


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.axhline(0, color="#adb5bd", linewidth=0.8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
