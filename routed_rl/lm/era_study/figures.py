"""The figures of a study of Expand-Route-Ablate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from routed_rl.runs.figures import colormap, subplots
from routed_rl.runs.tables import aggregate, half_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {
    "base": ("base", "#555555", ":", "o"),
    "control": ("control (not routed)", "#999999", "--", "s"),
    "filtering": ("filtering", "#d55e00", "-", "^"),
    "rmu": ("RMU", "#cc79a7", "-.", "v"),
    "demix": ("DEMix + ablate", "#8c564b", "--", "D"),
    "era": ("ERA, activations", "#0072b2", "-", "o"),
    "era-parameter": ("ERA, parameters", "#56b4e9", "--", "P"),
    "era-forward": ("ERA, forward", "#332288", ":", "X"),
    "era-chosen": ("ERA, second repair", "#e69f00", "-", "s"),
    "control-chosen": ("control, second repair", "#999933", ":", "<"),
    "era+rmu": ("ERA + RMU", "#009e73", "-", "*"),
}
"""Name, colour, line and marker of each method. Colour-blind readers can tell them apart."""
ORDER = list(STYLES)
UNLABELLED = ("base", "control")
"""Methods that train without labels."""
Curve = Sequence[tuple[float, float]]
"""Pairs of an attack step and the forget loss after it."""
PANELS = (
    ("unlearning", "rise of the forget loss (nats per token)", "Unlearning"),
    ("robust", "rise left after the attack (nats per token)", "Robust unlearning"),
    ("retain", "retain loss (nats per token)", "Retain loss"),
)


def draw_panels(frame: pd.DataFrame) -> Figure:
    """Unlearning, robust unlearning and retain loss against the share of labels, with 95 % intervals.

    Methods are drawn side by side at each share, so that their intervals do not cover each other.
    """
    figure, axes = subplots(1, 3, figsize=(13, 4.6))
    shares = sorted(set(frame.labelled))
    places = {share: place for place, share in enumerate(shares)}
    methods = _methods(frame)
    for axis, (measure, label, title) in zip(axes, PANELS, strict=True):
        found = aggregate(frame, measure, ["method", "labelled"])
        for i, method in enumerate(methods):
            rows = found[found.method == method].sort_values("labelled")
            name, color, line, marker = STYLES[method]
            if len(rows) == 1 and method in UNLABELLED:
                axis.axhline(rows["mean"].iloc[0], color=color, linestyle=line, label=name)
            else:
                beside = rows.labelled.map(places) + (i - (len(methods) - 1) / 2) * 0.5 / len(methods)
                style = {"color": color, "linestyle": line, "marker": marker, "markersize": 5}
                halves = rows["half"].fillna(0)
                axis.errorbar(beside, rows["mean"], halves, label=name, capsize=2, elinewidth=0.8, **style)
        axis.set_title(title, fontsize="medium")
        axis.set(xlabel="share of forget documents that are labelled", ylabel=label)
        axis.set_xticks(range(len(shares)), [f"{share:.0%}" for share in shares])
        axis.set_xlim(-0.5, len(shares) - 0.5)
    axes[1].set_ylim(min(-0.05, axes[1].get_ylim()[0]))
    _legend(figure, axes[0], "Mean and 95 % interval over seeds")
    return figure


def draw_relearning(curves: Mapping[tuple[str, float, int], Mapping[str, Sequence[Curve]]], focus: float) -> Figure:
    """The forget loss against attack steps, with a panel for each number of documents that the attacker has."""
    shown = {key: value for key, value in curves.items() if key[1] == focus or key[0] in UNLABELLED}
    numbers = sorted({int(number) for value in shown.values() for number in value})
    figure, axes = subplots(1, len(numbers), figsize=(13, 4.6), sharey=True, squeeze=False)
    for axis, number in zip(axes[0], numbers, strict=True):
        for i, method in enumerate(method for method in ORDER if any(key[0] == method for key in shown)):
            of_seeds = [value[str(number)] for key, value in shown.items() if key[0] == method]
            length = min(len(curve) for curves in of_seeds for curve in curves)  # some may have stopped early
            points = np.array([[curve[:length] for curve in curves] for curves in of_seeds]).mean(axis=1)
            steps, stacked = points[0, :, 0], points[:, :, 1]
            name, color, line, marker = STYLES[method]
            mean, half = stacked.mean(axis=0), half_interval(stacked)
            axis.plot(steps, mean, color=color, linestyle=line, marker=marker, markersize=4, label=name)
            some = slice(i % 3, None, 3)  # bars of different lines do not hide each other
            bars = {"fmt": "none", "ecolor": color, "elinewidth": 0.8, "capsize": 2, "alpha": 0.7}
            axis.errorbar(steps[some], mean[some], half[some], **bars)
        axis.set_title(f"Attack with {number} document{'s' if number > 1 else ''}", fontsize="medium")
        axis.set(xlabel="attack step", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.set_major_formatter("{x:.1f}")
        axis.yaxis.set_minor_formatter("{x:.1f}")
    axes[0][0].set_ylabel("forget loss (nats per token)")
    _legend(
        figure, axes[0][0], f"Relearning, {focus:.0%} of forget documents labelled; mean and 95 % interval over seeds"
    )
    return figure


def draw_tokens(frame: pd.DataFrame) -> Figure:
    """The forget loss on routed words and on all other words, by method and share of labels."""
    figure, axes = subplots(1, 2, figsize=(13, 4.4))
    parts = {"forget_routed": "routed words", "forget_rest": "other words"}
    shares = sorted(set(frame.labelled))
    colors = colormap("Blues")(np.linspace(0.35, 0.95, len(shares)))
    for axis, (measure, title) in zip(axes, parts.items(), strict=True):
        found = aggregate(frame, measure, ["method", "labelled"])
        methods = _methods(frame)
        for i, share in enumerate(shares):
            rows = found[found.labelled == share].set_index("method").reindex(methods)
            places = np.arange(len(methods)) + (i - (len(shares) - 1) / 2) * 0.8 / len(shares)
            look = {"color": colors[i], "edgecolor": "black", "linewidth": 0.4, "capsize": 2}
            halves = rows["half"].fillna(0)
            axis.bar(places, rows["mean"], 0.8 / len(shares), yerr=halves, label=f"{share:.0%} labelled", **look)
        axis.set_xticks(range(len(methods)), [STYLES[method][0] for method in methods], rotation=30, ha="right")
        axis.set_title(f"Forget documents: {title}", fontsize="medium")
        axis.set_ylabel("loss (nats per token)")
    figure.suptitle("Mean and 95 % interval over seeds", fontsize="medium")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def _methods(frame: pd.DataFrame) -> list[str]:
    return [method for method in ORDER if method in set(frame.method)]


def _legend(figure: Any, axis: Any, title: str) -> None:
    """A title above the figure, and a legend below it."""
    handles, labels = axis.get_legend_handles_labels()
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=min(len(labels), 5), frameon=False, handlelength=3.5)
