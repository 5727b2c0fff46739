"""The figures of a study of Expand-Route-Ablate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from routed_rl.runs.figures import subplots
from routed_rl.runs.tables import aggregate, half_interval

STYLES = {
    "base": ("base", "#555555", ":"),
    "control": ("control (not routed)", "#999999", "--"),
    "filtering": ("filtering", "#d62728", "-"),
    "rmu": ("RMU", "#9467bd", "-"),
    "demix": ("DEMix + ablate", "#8c564b", "-"),
    "era": ("ERA, activations", "#1f77b4", "-"),
    "era-parameter": ("ERA, parameters", "#2ca02c", "-"),
    "era-forward": ("ERA, forward", "#17becf", "-"),
    "era-chosen": ("ERA, own repair", "#ff7f0e", "-"),
    "control-chosen": ("its control (not routed)", "#bcbd22", "--"),
    "era+rmu": ("ERA + RMU", "#e377c2", "-"),
}
"""Name, colour and line of each method."""
ORDER = list(STYLES)
UNLABELLED = ("base", "control")
"""Methods that use no labels, but for the words that are reported on."""
Curve = Sequence[tuple[float, float]]
"""Steps of an attack, each with the loss after it."""
PANELS = (
    ("unlearning", "forget loss risen by (nats)", "Unlearning"),
    ("robust", "… left after relearning (nats)", "Robust unlearning"),
    ("retain", "retain loss (nats)", "Retain performance"),
)


def draw_panels(frame: pd.DataFrame) -> Figure:
    """Unlearning, robust unlearning and retain loss against the share of labels, with 95 % intervals."""
    figure, axes = subplots(1, 3, figsize=(13, 4.2))
    for axis, (measure, label, title) in zip(axes, PANELS, strict=True):
        found = aggregate(frame, measure, ["method", "labelled"])
        for method in _methods(frame):
            rows = found[found.method == method].sort_values("labelled")
            name, color, line = STYLES[method]
            halves = rows["half"].fillna(0)
            if len(rows) == 1 and method in UNLABELLED:
                axis.axhline(rows["mean"].iloc[0], color=color, linestyle=line, label=name)
            else:
                style = {"color": color, "linestyle": line, "marker": "o", "capsize": 3}
                axis.errorbar(rows.labelled, rows["mean"], halves, label=name, **style)
        axis.set(title=title, xlabel="share of the topic's documents labelled", ylabel=label)
    axes[1].set_ylim(min(-0.05, axes[1].get_ylim()[0]))
    _legend(figure, axes[0])
    return figure


def draw_relearning(curves: Mapping[tuple[str, float, int], Mapping[str, Sequence[Curve]]], focus: float) -> Figure:
    """The loss on the topic against steps of the attack, a panel for each number of documents it has."""
    shown = {key: value for key, value in curves.items() if key[1] == focus or key[0] in UNLABELLED}
    numbers = sorted({int(number) for value in shown.values() for number in value})
    figure, axes = subplots(1, len(numbers), figsize=(13, 4.2), sharey=True, squeeze=False)
    for axis, number in zip(axes[0], numbers, strict=True):
        for method in (method for method in ORDER if any(key[0] == method for key in shown)):
            of_seeds = [value[str(number)] for key, value in shown.items() if key[0] == method]
            length = min(len(curve) for curves in of_seeds for curve in curves)  # some may have stopped early
            points = np.array([[curve[:length] for curve in curves] for curves in of_seeds]).mean(axis=1)
            steps, stacked = points[0, :, 0], points[:, :, 1]
            name, color, line = STYLES[method]
            mean, half = stacked.mean(axis=0), half_interval(stacked)
            axis.plot(steps, mean, color=color, linestyle=line, label=name)
            axis.fill_between(steps, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
        axis.set(title=f"{number} documents", xlabel="relearning step", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.set_major_formatter("{x:.1f}")
        axis.yaxis.set_minor_formatter("{x:.1f}")
    axes[0][0].set_ylabel(f"loss on the topic at {focus:.0%} labelled (nats)")
    _legend(figure, axes[0][0])
    return figure


def draw_tokens(frame: pd.DataFrame) -> Figure:
    """The loss on the topic's documents, of words that are routed and of all others, by method and share of labels."""
    figure, axes = subplots(1, 2, figsize=(13, 4.2))
    parts = {"forget_routed": "words that are routed", "forget_rest": "other words"}
    for axis, (measure, title) in zip(axes, parts.items(), strict=True):
        found = aggregate(frame, measure, ["method", "labelled"])
        methods = _methods(frame)
        shares = sorted(set(frame.labelled))
        for i, share in enumerate(shares):
            rows = found[found.labelled == share].set_index("method").reindex(methods)
            places = np.arange(len(methods)) + (i - (len(shares) - 1) / 2) * 0.8 / len(shares)
            halves = rows["half"].fillna(0)
            axis.bar(places, rows["mean"], 0.8 / len(shares), yerr=halves, capsize=2, label=f"{share:.0%} labelled")
        axis.set_xticks(range(len(methods)), [STYLES[method][0] for method in methods], rotation=30, ha="right")
        axis.set(title=f"The topic's documents: {title}", ylabel="loss (nats)")
    axes[1].legend(loc="upper left")
    figure.tight_layout()
    return figure


def _methods(frame: pd.DataFrame) -> list[str]:
    return [method for method in ORDER if method in set(frame.method)]


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=min(len(labels), 5), frameon=False)
