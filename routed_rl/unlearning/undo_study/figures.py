"""The figures of an UNDO study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from routed_rl.options.undo import UndoOptions
from routed_rl.runs.figures import subplots
from routed_rl.runs.tables import half_interval
from routed_rl.unlearning.attacks import WorstCase
from routed_rl.unlearning.undo_study.members import Member

UNITS = {"answers": "right answers", "completions": "right answers", "loss": "loss (nats)", "lm-eval": "score"}
FIGURES = ("relearning", "compute", "distilled", "oracle", "front", "labels")
KNOWN = {metric: f"{unit} on what is forgotten" for metric, unit in UNITS.items()}
KEPT = {metric: f"{unit} on what is retained" for metric, unit in UNITS.items()}
FIXED = {"reference": "#999999", "filtered": "#d62728", "suppressed": "#1f77b4"}
"""Colours of models that others are compared with."""
Curves = Mapping[Member, WorstCase]


def figures(
    frame: pd.DataFrame,
    curves: Curves,
    kept: Curves,
    matching: Mapping[str, Sequence[Mapping[str, float]]],
    options: UndoOptions,
) -> dict[str, Callable[[], Figure]]:
    """Return what draws each figure, of those for which the models are there.

    Args:
        frame: the rows of ``results.csv``.
        curves: the attacker who may break everything else.
        kept: the attacker who must keep the retain set.
        matching: metrics of the runs that match the filtered model, by name.
    """
    metric = options.metric
    usual = {member: case for member, case in curves.items() if _is_usual(member, options)}
    undone = frame[(frame.model == "undo") & frame.robustness.notna()]
    drawn: dict[str, tuple[Any, Callable[[], Figure]]] = {
        "relearning": (True, lambda: draw_relearning(usual, metric)),
        "compute": (len(undone), lambda: draw_trade_off(undone, options.betas[0])),
        "distilled": ((frame.model == "distilled").any(), lambda: draw_distilled(usual, metric)),
        "oracle": (matching, lambda: draw_matching(usual, kept, matching, metric)),
        "front": (frame.suppressor.notna().any(), lambda: draw_front(frame, metric)),
        "labels": (len(options.labelled) > 1, lambda: draw_labels(frame, options)),
    }
    return {name: draw for name, (is_there, draw) in drawn.items() if is_there}


def draw_relearning(curves: Curves, metric: str) -> Figure:
    """What is known of what was forgotten, against steps of the attack."""
    shown = ("reference", "filtered", "suppressed", "undo")
    figure, axis = subplots(figsize=(9.5, 5))
    _relearning(axis, curves, lambda member: member.model in shown, metric)
    axis.set_title("Relearning, at the worst learning rate of each step")
    axis.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def draw_trade_off(undone: pd.DataFrame, beta: float) -> Figure:
    """Robustness against compute, a point for each model, with a line through those of each teacher at the
    main beta."""
    figure, axis = subplots(figsize=(6.5, 5))
    lines, markers = ("--", ":", "-."), ("o", "s", "^", "D")
    for i, (method, rows) in enumerate(undone.groupby("suppressor", sort=False)):
        for is_main in (True, False):
            those = rows[(rows.beta == beta) == is_main]
            x, y = (100 * those[name].astype(float) for name in ("compute", "robustness"))
            look = {"marker": markers[i % 4] if is_main else "x", "cmap": "viridis", "vmin": 0, "vmax": 1}
            points = axis.scatter(x, y, c=those.alpha.astype(float), **look)
            if not is_main or x.nunique() < 2:
                continue
            slope, intercept = np.polyfit(x, y, 1)
            ends = np.array([x.min(), x.max()])
            label = f"{method}, fit, r = {np.corrcoef(x, y)[0, 1]:.2f}"
            axis.plot(ends, intercept + slope * ends, lines[i % 3], color="#999999", label=label)
    figure.colorbar(points, label=f"α (× : other β than {beta:g})")
    axis.plot(100, 100, "*", color=FIXED["filtered"], markersize=14, label="filtered")
    axis.set(xlabel="compute, % of the filtered model's steps", ylabel="robustness, %")
    axis.legend(frameon=False)
    figure.tight_layout()
    return figure


def draw_distilled(curves: Curves, metric: str) -> Figure:
    """Relearning of each teacher, and of a new model that was distilled from it."""
    methods = list(dict.fromkeys(member.suppressor for member in curves if member.model == "distilled"))
    figure, axes = subplots(1, len(methods), figsize=(4.3 * len(methods), 4), sharey=True, squeeze=False)
    for axis, method in zip(axes[0], methods, strict=True):

        def belongs(member: Member, method: str | None = method) -> bool:
            own = member.suppressor == method and member.model in ("suppressed", "distilled")
            return own or member.model == "filtered"

        _relearning(axis, curves, belongs, metric)
        axis.set_title(method)
        axis.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    return figure


def draw_matching(
    curves: Curves, kept: Curves, matching: Mapping[str, Sequence[Mapping[str, float]]], metric: str
) -> Figure:
    """The divergence from the filtered model while it is matched, and relearning afterwards, by attackers of both
    kinds."""
    figure, axes = subplots(1, 3, figsize=(15, 4.3))
    for name, rows in matching.items():
        axes[0].plot([row["step"] for row in rows], [row["loss"] for row in rows], label=name)
    axes[0].set(xlabel="step of distillation", ylabel="divergence from the filtered model (nats)", yscale="log")
    axes[0].legend(frameon=False)
    models = ("filtered", "matched, new", "matched, reference")
    for axis, of, title in ((axes[1], curves, "relearning"), (axes[2], kept, "by one who keeps what is retained")):
        _relearning(axis, {member: of[member] for member in curves}, lambda member: member.model in models, metric)
        axis.set_title(title)
        axis.legend(frameon=False)
    figure.tight_layout()
    return figure


def draw_front(frame: pd.DataFrame, metric: str) -> Figure:
    """What is retained against what is known of what was forgotten, before an attack, within it and at its end."""
    steps = sorted(int(name.removeprefix("forget_")) for name in frame if name.removeprefix("forget_").isdigit())
    steps = [steps[0], min(steps, key=lambda step: abs(step - 0.2 * steps[-1])), steps[-1]]
    figure, axes = subplots(1, len(steps), figsize=(13, 4.3), sharex=True, sharey=True)
    kinds = list(dict.fromkeys(zip(frame.model, frame.suppressor.fillna(""), strict=True)))
    colors = matplotlib.colormaps["tab20"](np.linspace(0, 1, max(len(kinds), 2)))
    markers = {"undo": "*", "distilled": "s", "suppressed": "o"}
    for axis, step in zip(axes, steps, strict=True):
        for (model, method), color in zip(kinds, colors, strict=False):
            rows = frame[(frame.model == model) & (frame.suppressor.fillna("") == method)]
            label = f"{model}, {method}" if method else model
            axis.scatter(rows.retain, rows[f"forget_{step}"], color=color, marker=markers.get(model, "D"), label=label)
        axis.set(title=f"{step} steps of attack", xlabel=KEPT[metric])
    axes[0].set_ylabel(KNOWN[metric])
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, frameon=False, fontsize="small")
    return figure


def draw_labels(frame: pd.DataFrame, options: UndoOptions) -> Figure:
    """What is known of what was forgotten, before the attack and after it, against the share that was labelled."""
    last = max(options.relearn.measured)
    figure, axis = subplots(figsize=(6.5, 4.5))
    main = frame[(frame.strength == 1.0) & (frame.suppressor == options.suppress[0])]
    filtered = frame[frame.model == "filtered"].fillna({"labelled": 1.0})
    groups = {"suppressed": main, "distilled": main, "filtered": filtered}
    for model, rows in groups.items():
        color = FIXED.get(model, "#2ca02c")
        means = rows[rows.model == model].groupby("labelled")[[f"forget_{last}", "forget_0"]].mean()
        axis.plot(means.index, means[f"forget_{last}"], "o-", color=color, label=f"{model}, attacked")
        axis.plot(means.index, means.forget_0, "o:", color=color, label=f"{model}, before")
    axis.set(xscale="log", xlabel="share of what is to be forgotten that is labelled", ylabel=KNOWN[options.metric])
    axis.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    return figure


def _is_usual(member: Member, options: UndoOptions) -> bool:
    """Whether a model is not of the further ones, with fewer labels or a teacher of another strength."""
    if member.strength is None:  # of what was not suppressed here
        return member.labelled is None
    return member.strength == 1.0 and member.labelled == options.labelled[0]


def _relearning(axis: Any, curves: Curves, belongs: Callable[[Member], bool], metric: str) -> None:
    """Means over seeds with 95 % intervals, of the members that belong there."""
    groups: dict[tuple[str, str], list[WorstCase]] = {}
    for member, case in curves.items():
        if belongs(member):
            groups.setdefault((member.name, member.model), []).append(case)
    others = iter(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(len(groups), 2))))
    dashes = {model: iter(("-", "--", ":", "-.")) for model in FIXED}
    for (label, model), cases in groups.items():
        color, style = (FIXED[model], next(dashes[model], "-")) if model in FIXED else (next(others), "-")
        known = [dict(zip(case.steps, case.forget, strict=True)) for case in cases]
        steps = sorted(set(known[0]).intersection(*known))  # attacks may end early
        values = np.array([[of[step] for step in steps] for of in known])
        mean, half = values.mean(axis=0), half_interval(values)
        axis.plot(steps, mean, style, label=label, color=color, marker="." if len(steps) == 1 else None)
        axis.fill_between(steps, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
    axis.set(xlabel="step of the attack", ylabel=KNOWN[metric])
    if metric == "loss":  # from little to what a model says that is sure of something else
        axis.set_yscale("log")
        for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            ticks(ScalarFormatter())
