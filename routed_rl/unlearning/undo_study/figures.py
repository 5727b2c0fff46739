"""The figures of an UNDO study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count, cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from routed_rl.options.undo import UndoOptions
from routed_rl.runs.figures import colormap, subplots
from routed_rl.runs.tables import half_interval
from routed_rl.unlearning.attacks import WorstCase
from routed_rl.unlearning.metrics import Loss, Metric
from routed_rl.unlearning.undo_study.members import Member, named_suppressors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("relearning", "compute", "distilled", "oracle", "front", "labels")
COLORS = {
    "reference": "#777777",
    "filtered": "#d55e00",
    "suppressed": "#0072b2",
    "distilled": "#009e73",
    "undo": "#cc79a7",
    "matched, new": "#009e73",
    "matched, reference": "#0072b2",
}
"""A colour for each kind of model, which colour-blind readers can tell apart (Okabe and Ito 2008)."""
SUPPRESSORS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#f0e442", "#000000", "#882255")
"""Colours of suppressed models, where several are drawn together."""
MARKERS = "os^vDPX<>ph*"
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)), (0, (4, 1)))
NOTE = "Worst case over the learning-rate sweep, within so many attack steps; mean and 95 % interval over seeds"
Curves = Mapping[Member, WorstCase]


def figures(
    frame: pd.DataFrame,
    curves: Curves,
    kept: Curves,
    matching: Mapping[str, Sequence[Mapping[str, float]]],
    options: UndoOptions,
    metric: Metric,
) -> dict[str, Callable[[], Figure]]:
    """Return a function that draws each figure, for the figures whose models are finished.

    Args:
        frame: the rows of ``results.csv``.
        curves: attacks without a constraint on the retain performance.
        kept: attacks that must keep the retain performance.
        matching: metrics of the runs that match the filtered model, by name.
        metric: the first one of the options.
    """
    usual = {member: case for member, case in curves.items() if _is_usual(member, options)}
    undone = frame[(frame.model == "undo") & frame.robustness.notna()]
    drawn: dict[str, tuple[Any, Callable[[], Figure]]] = {
        "relearning": (True, lambda: draw_relearning(usual, metric, options.betas[0])),
        "compute": (len(undone), lambda: draw_trade_off(undone, options.betas[0])),
        "distilled": ((frame.model == "distilled").any(), lambda: draw_distilled(usual, metric)),
        "oracle": (matching, lambda: draw_matching(usual, kept, matching, metric)),
        "front": (frame.suppressor.notna().any(), lambda: draw_front(frame, metric)),
        "labels": (len(options.labelled) > 1, lambda: draw_labels(frame, options, metric)),
    }
    return {name: draw for name, (is_there, draw) in drawn.items() if is_there}


def draw_relearning(curves: Curves, metric: Metric, beta: float) -> Figure:
    """Forget performance against attack steps: a panel for suppressed models, and panels for each noised teacher.

    Args:
        beta: the main noise scale. Students with other scales have a panel of their own.
    """
    panels: list[tuple[str, Callable[[Member], bool]]] = [
        ("Suppressed models", lambda member: member.model in ("reference", "filtered", "suppressed"))
    ]
    for teacher in dict.fromkeys(member.suppressor for member in curves if member.model == "undo"):
        students = [member for member in curves if member.model == "undo" and member.suppressor == teacher]
        panels.append((f"UNDO of {teacher}", _family(teacher, lambda member: member.beta == beta)))
        others = {member.alpha for member in students if member.beta != beta}
        for alpha in sorted(alpha for alpha in others if alpha is not None):
            title = f"UNDO of {teacher}, other noise scales β"
            panels.append((title, _family(teacher, lambda member, alpha=alpha: member.alpha == alpha)))
    figure, axes = subplots(1, len(panels), figsize=(4.6 * len(panels), 5.4), sharey=True, squeeze=False)
    for axis, (title, belongs) in zip(axes[0], panels, strict=True):
        _relearning(axis, curves, belongs, metric)
        axis.set_title(title, fontsize="medium")
        _legend_below(axis)
    _finish(figure, axes[0], metric)
    return figure


def _family(teacher: str | None, belongs: Callable[..., bool]) -> Callable[[Member], bool]:
    """Say whether a member is the filtered model, a teacher, or one of the teacher's students that belong."""

    def of_family(member: Member) -> bool:
        if member.model == "undo" and member.suppressor == teacher:
            return belongs(member)
        return member.model == "filtered" or (member.model == "suppressed" and member.suppressor == teacher)

    return of_family


def draw_trade_off(undone: pd.DataFrame, beta: float) -> Figure:
    """Robustness against compute: a point per model, and a linear fit for each teacher at the main noise scale.

    Empty points are models whose robustness means little, because their retain performance is not their teacher's.
    """
    figure, axis = subplots(figsize=(7.5, 5))
    for i, (method, rows) in enumerate(undone.groupby("suppressor", sort=False)):
        for is_main in (True, False):
            those = rows[(rows.beta == beta) == is_main]
            if those.empty:
                continue
            x, y = (100 * those[name].astype(float) for name in ("compute", "robustness"))
            look = {"marker": MARKERS[i % len(MARKERS)], "cmap": "viridis", "vmin": 0, "vmax": 1}
            look |= {"linewidths": 0.5 if is_main else 1.5, "edgecolors": "black" if is_main else COLORS["filtered"]}
            label = f"{method}, β = {beta:g}" if is_main else f"{method}, other β"
            doubtful = those.comparable == False  # noqa: E712
            alpha = those.alpha.astype(float)[~doubtful]
            points = axis.scatter(x[~doubtful], y[~doubtful], c=alpha, s=50, label=label, **look)
            if doubtful.any():
                empty = {"marker": look["marker"], "facecolors": "white", "edgecolors": look["edgecolors"]}
                label = f"{method}, retain performance not back"
                axis.scatter(x[doubtful], y[doubtful], s=50, label=label, **empty)
            x, y = x[~doubtful], y[~doubtful]
            if not is_main or x.nunique() < 2:
                continue
            slope, intercept = np.polyfit(x, y, 1)
            ends = np.array([x.min(), x.max()])
            label = f"{method}, linear fit, r = {np.corrcoef(x, y)[0, 1]:.2f}"
            axis.plot(ends, intercept + slope * ends, linestyle=DASHES[1 + i % 3], color="#777777", label=label)
    figure.colorbar(points, label="noise level α")
    axis.plot(100, 100, "*", color=COLORS["filtered"], markersize=14, linestyle="", label="filtered model")
    axis.set(xlabel="steps of distillation (% of the filtered model's steps)", ylabel="robustness (%)")
    axis.set_title("UNDO: 0 % is as robust as the suppressed model, 100 % as the filtered model", fontsize="medium")
    axis.legend(frameon=False, fontsize="small", loc="lower right")
    figure.tight_layout()
    return figure


def draw_distilled(curves: Curves, metric: Metric) -> Figure:
    """Forget performance against attack steps, of each teacher and of the new model distilled from it."""
    methods = list(dict.fromkeys(member.suppressor for member in curves if member.model == "distilled"))
    figure, axes = subplots(1, len(methods), figsize=(max(4.3 * len(methods), 6), 4.3), sharey=True, squeeze=False)
    for axis, method in zip(axes[0], methods, strict=True):

        def belongs(member: Member, method: str | None = method) -> bool:
            own = member.suppressor == method and member.model in ("suppressed", "distilled")
            return own or member.model == "filtered"

        _relearning(axis, curves, belongs, metric)
        axis.set_title(f"Teacher: {method}", fontsize="medium")
        _legend_below(axis)
    _finish(figure, axes[0], metric)
    return figure


def draw_matching(
    curves: Curves, kept: Curves, matching: Mapping[str, Sequence[Mapping[str, float]]], metric: Metric
) -> Figure:
    """Divergence from the filtered model during distillation, and forget performance under two kinds of attack."""
    figure, axes = subplots(1, 3, figsize=(14, 4.8))
    for (name, rows), dashes in zip(matching.items(), cycle(DASHES), strict=False):
        steps, losses = ([row[key] for row in rows] for key in ("step", "loss"))
        axes[0].plot(
            steps, losses, linestyle=dashes, color=COLORS.get(name), label=name, marker="." * (len(steps) == 1)
        )
    axes[0].set(xlabel="distillation step", ylabel="divergence from the filtered model (nats)", yscale="log")
    axes[0].set_title("Matching the filtered model's outputs", fontsize="medium")
    models = ("filtered", "matched, new", "matched, reference")
    constrained = "Attack that must keep the retain performance"
    for axis, of, title in ((axes[1], curves, "Attack"), (axes[2], kept, constrained)):
        _relearning(axis, {member: of[member] for member in curves}, lambda member: member.model in models, metric)
        axis.set_title(title, fontsize="medium")
    axes[2].sharex(axes[1])
    axes[2].sharey(axes[1])
    axes[1].autoscale()
    for axis in axes:
        _legend_below(axis)
    _finish(figure, axes[1:], metric)
    return figure


def draw_front(frame: pd.DataFrame, metric: Metric) -> Figure:
    """Forget performance against retain performance: before the attack, during it and at its end."""
    steps = sorted(int(name.removeprefix("forget_")) for name in frame if name.removeprefix("forget_").isdigit())
    steps = sorted({steps[0], min(steps, key=lambda step: abs(step - 0.2 * steps[-1])), steps[-1]})
    figure, axes = subplots(1, len(steps), figsize=(13, 4.8), sharex=True, sharey=True)
    models = [model for model in COLORS if model in set(frame.model)]
    methods = list(dict.fromkeys(frame.suppressor.dropna()))
    shapes = dict(zip(methods, cycle(MARKERS), strict=False))
    for axis, step in zip(axes, steps, strict=True):
        for model in models:
            for method in ("", *methods):
                rows = frame[(frame.model == model) & (frame.suppressor.fillna("") == method)]
                look = {
                    "marker": shapes[method] if method else "*",
                    "s": 40 if method else 110,
                    "edgecolors": COLORS[model],
                }
                look |= {"facecolors": "none" if model in ("suppressed", "reference") else COLORS[model], "alpha": 0.8}
                axis.scatter(rows.retain, rows[f"forget_{step}"], **look)
        axis.set_title(
            f"After {step} attack step{'s' * (step > 1)}" if step else "Before the attack", fontsize="medium"
        )
        better, worse = ("higher", "lower") if metric.higher_is_better else ("lower", "higher")
        axis.set_xlabel(f"retain {metric.unit}: {better} is better")
        axis.margins(0.08)
    axes[0].set_ylabel(f"forget {metric.unit}: {worse} is better")
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    for model in models:
        empty = model in ("suppressed", "reference")
        shape = "o" if frame[frame.model == model].suppressor.notna().any() else "*"
        look = {"facecolors": "none" if empty else COLORS[model], "edgecolors": COLORS[model]}
        axes[0].scatter([], [], marker=shape, s=110 if shape == "*" else 40, label=model, **look)
    for method, shape in shapes.items():
        axes[0].scatter(
            [], [], marker=shape, s=40, facecolors="none", edgecolors="black", label=f"suppressor: {method}"
        )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(len(labels), 7), frameon=False, fontsize="small")
    return figure


def draw_labels(frame: pd.DataFrame, options: UndoOptions, metric: Metric) -> Figure:
    """Forget performance before and after the attack, against the share of the forget set that is labelled."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    last = max(int(step) for name in frame if (step := name.removeprefix("forget_")).isdigit())
    figure, axis = subplots(figsize=(8.5, 4.5))
    main = frame[(frame.strength == 1.0) & (frame.suppressor == next(iter(named_suppressors(options))))]
    filtered = frame[frame.model == "filtered"].fillna({"labelled": 1.0})
    groups = {"suppressed": main, "distilled": main, "filtered": filtered}
    for (model, rows), marker in zip(groups.items(), MARKERS, strict=False):
        means = rows[rows.model == model].groupby("labelled")[[f"forget_{last}", "forget_0"]].mean()
        if means.empty:
            continue
        look = {"color": COLORS[model], "marker": marker}
        axis.plot(means.index, means[f"forget_{last}"], "-", label=f"{model}, after {last} attack steps", **look)
        axis.plot(means.index, means.forget_0, ":", mfc="white", label=f"{model}, before the attack", **look)
    axis.set(xscale="log", xlabel="share of the forget set that is labelled", ylabel=f"forget {metric.unit}")
    axis.set_xticks(sorted(set(options.labelled)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title("Fewer labels: mean over seeds", fontsize="medium")
    axis.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def _is_usual(member: Member, options: UndoOptions) -> bool:
    """Whether a model is none of the further ones, with fewer labels or a teacher of another strength."""
    if member.strength is None:  # not made by a suppressor of this study
        return member.labelled is None
    return member.strength == 1.0 and member.labelled == options.labelled[0]


def _relearning(axis: Any, curves: Curves, belongs: Callable[[Member], bool], metric: Metric) -> None:
    """Draw the members that belong: means over seeds as lines, 95 % intervals as thin bars at some of the steps."""
    from matplotlib.ticker import LogLocator, MaxNLocator, ScalarFormatter

    groups: dict[tuple[str, str], list[WorstCase]] = {}
    for member, case in curves.items():
        if belongs(member):
            groups.setdefault((member.name, member.model), []).append(case)
    colors, fixed, others = _group_colors(groups), ("reference", "filtered"), count(2)
    for i, ((label, model), cases) in enumerate(groups.items()):
        known = [dict(zip(case.steps, case.forget, strict=True)) for case in cases]
        steps = sorted(set(known[0]).intersection(*known))  # attacks may end early
        values = np.array([[of[step] for step in steps] for of in known])
        mean, half = values.mean(axis=0), half_interval(values)
        style = fixed.index(model) if model in fixed else next(others)
        look = {"linestyle": DASHES[style % len(DASHES)], "marker": MARKERS[style % len(MARKERS)]}
        axis.plot(steps, mean, color=colors[label], label=label, markersize=4, linewidth=1.5, **look)
        some = slice(i % 3, None, 3)  # bars of different lines do not hide each other
        axis.errorbar(
            steps[some], mean[some], half[some], fmt="none", ecolor=colors[label], elinewidth=0.8, capsize=2, alpha=0.7
        )
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlabel("attack step")
    if isinstance(metric, Loss):  # losses range from below one nat to those of a model that is sure of something else
        axis.set_yscale("log")
        axis.yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 4, 5, 7)))
        for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            ticks(ScalarFormatter())


def _group_colors(groups: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Colours by label: those of the kinds of models, and shades where a kind has several models."""
    groups = list(groups)
    colors: dict[str, Any] = {}
    for kind in dict.fromkeys(model for _, model in groups):
        labels = [label for label, model in groups if model == kind]
        if len(labels) == 1:
            colors[labels[0]] = COLORS[kind]
        elif kind == "suppressed":
            colors |= dict(zip(labels, cycle(SUPPRESSORS), strict=False))
        else:
            shades = colormap("viridis_r")(np.linspace(0.15, 1, len(labels)))
            colors |= dict(zip(labels, shades, strict=True))
    return colors


def _legend_below(axis: Any) -> None:
    """A legend below the axis, in the order of the curves, out of their way."""
    axis.legend(
        frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=5, handlelength=3.5
    )


def _finish(figure: Figure, axes: Sequence[Any], metric: Metric) -> None:
    """Label the first axis, say above the figure what is drawn, and cut wide intervals off beside the curves."""
    axes[0].set_ylabel(f"forget {metric.unit}")
    lines = [line for axis in axes for line in axis.get_lines() if not str(line.get_label()).startswith("_")]
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in lines])
    low, high = axes[0].get_ylim()
    if isinstance(metric, Loss):
        axes[0].set_ylim(max(low, 0.85 * drawn.min()), min(high, 1.15 * drawn.max()))
    elif metric.limits is not None:
        margin = 0.05 * (metric.limits[1] - metric.limits[0])
        axes[0].set_ylim(max(low, metric.limits[0] - margin), min(high, metric.limits[1] + margin))
    figure.suptitle(NOTE, fontsize="medium")
    figure.tight_layout()
