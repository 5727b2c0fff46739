"""The figures of a study of Expand-Route-Ablate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from routed_rl.runs.figures import GREYS, PALETTE, draw_bars, draw_means, ordered_colour, over_seeds, subplots
from routed_rl.runs.style import label_ends, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {
    "base": ("base", GREYS[3], ":", "o"),
    "control": ("control (not routed)", GREYS[2], "--", "s"),
    "filtering": ("filtering", PALETTE["wine"], "-", "^"),
    "rmu": ("RMU", PALETTE["vermillion"], "-", "v"),
    "demix": ("DEMix + ablate", PALETTE["indigo"], "-", "D"),
    "era": ("ERA, activations", PALETTE["blue"], "-", "o"),
    "era-parameter": ("ERA, parameters", PALETTE["teal"], "-", "P"),
    "era-forward": ("ERA, forward", PALETTE["black"], "-", "X"),
    "era-chosen": ("ERA, second repair", PALETTE["orange"], "-", "s"),
    "control-chosen": ("control, second repair", GREYS[0], "--", "<"),
    "era+rmu": ("ERA + RMU", PALETTE["brown"], "-", "*"),
}
"""Name, colour, line and marker of each method."""
ORDER = list(STYLES)
UNLABELLED = ("base", "control")
"""Methods that train without labels."""
GROUPS = {
    "ERA and other methods": ("base", "filtering", "rmu", "demix", "era", "era-chosen"),
    "Variants of ERA, and controls": (
        "control", "era", "era-parameter", "era-forward", "era-chosen", "control-chosen", "era+rmu",
    ),
}  # fmt: skip
"""The methods of each column of panels."""
Curve = Sequence[tuple[float, float]]
"""Pairs of an attack step and the forget loss after it."""
PANELS = (
    ("unlearning", "rise of the forget loss\n(nats per token)", "Unlearning"),
    ("robust", "rise left after the attack\n(nats per token)", "Robust unlearning"),
    ("retain", "retain loss\n(nats per token)", "Retain loss"),
)


@styled()
def draw_panels(frame: pd.DataFrame) -> Figure:
    """Unlearning, robust unlearning and retain loss against the share of labels, with 95 % intervals.

    Methods are drawn side by side at each share, so that their intervals do not cover each other.
    """
    groups = _groups(frame.method)
    figure, plots = subplots(len(PANELS), len(groups), height=7.2, sharex=True, sharey="row", squeeze=False)
    places = {share: place for place, share in enumerate(sorted(set(frame.labelled)))}
    for at, (row, (measure, label, title)) in enumerate(zip(plots, PANELS, strict=True)):
        for axes, (group, methods) in zip(row, groups.items(), strict=True):
            for i, method in enumerate(methods):
                rows = frame[frame.method == method].groupby("labelled")[measure]
                name, colour, line, marker = STYLES[method]
                look: dict[str, Any] = {"label": name, "color": colour, "linestyle": line}
                if rows.ngroups == 1 and method in UNLABELLED:
                    axes.axhline(frame[frame.method == method][measure].mean(), **look)
                else:
                    beside = (i - (len(methods) - 1) / 2) * 0.5 / len(methods)
                    x = [places[share] + beside for share in rows.groups]
                    draw_means(axes, x, [values.to_numpy() for _, values in rows], marker=marker, **look)
            axes.set_title(title if at or len(groups) == 1 else f"{group}\n{title}")
        row[0].set_ylabel(label)
    for axes in plots[-1]:
        axes.set_xlabel("share of forget documents with labels")
        axes.set_xticks(list(places.values()), [f"{share:.0%}" for share in places])
        axes.set_xlim(-0.5, len(places) - 0.5)
    figure.suptitle(
        f"Unlearning by share of labels: {over_seeds(frame.groupby(['method', 'labelled']).seed.nunique())}"
    )
    figure.align_ylabels()
    label_ends(figure, 22)
    return figure


@styled()
def draw_relearning(curves: Mapping[tuple[str, float, int], Mapping[str, Sequence[Curve]]], focus: float) -> Figure:
    """The forget loss against attack steps, with a row for each number of documents that the attacker has."""
    shown = {key: value for key, value in curves.items() if key[1] == focus or key[0] in UNLABELLED}
    numbers = sorted({int(number) for value in shown.values() for number in value})
    groups = _groups(key[0] for key in shown)
    height = 0.6 + 2.3 * len(numbers)
    figure, plots = subplots(len(numbers), len(groups), height=height, sharex=True, sharey=True, squeeze=False)
    seeds = []
    for at, (row, number) in enumerate(zip(plots, numbers, strict=True)):
        for axes, (group, methods) in zip(row, groups.items(), strict=True):
            for i, method in enumerate(methods):
                of_seeds = [value[str(number)] for key, value in shown.items() if key[0] == method]
                length = min(len(curve) for curves in of_seeds for curve in curves)  # some may have stopped early
                points = np.array([[curve[:length] for curve in curves] for curves in of_seeds]).mean(axis=1)
                name, colour, line, marker = STYLES[method]
                some = slice(i % 3, None, 3)  # bars of different lines do not hide each other
                look = {"color": colour, "linestyle": line, "marker": marker, "label": name}
                draw_means(axes, points[0, :, 0], points[:, :, 1].T, bars=some, **look)
                seeds.append(len(points))
            title = f"Attack with {number} document{'s' if number > 1 else ''}"
            axes.set(yscale="log")
            axes.set_title(title if at or len(groups) == 1 else f"{group}\n{title}")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.yaxis.set_major_formatter("{x:.1f}")
            axes.yaxis.set_minor_formatter("{x:.1f}")
        row[0].set_ylabel("forget loss (nats per token)")
    for axes in plots[-1]:
        axes.set_xlabel("attack step")
    figure.suptitle(f"Relearning, {focus:.0%} of forget documents labelled: {over_seeds(seeds)}")
    label_ends(figure, 22)
    return figure


@styled()
def draw_tokens(frame: pd.DataFrame) -> Figure:
    """The forget loss on routed words and on all other words, by method and share of labels."""
    from matplotlib.patches import Patch

    figure, plots = subplots(2, height=5, sharex=True)
    parts = {"forget_routed": "routed words", "forget_rest": "other words"}
    shares = sorted(set(frame.labelled))
    methods = [method for method in ORDER if method in set(frame.method)]
    for axes, (measure, title) in zip(plots, parts.items(), strict=True):
        for i, share in enumerate(shares):
            rows = {method: of.to_numpy() for method, of in frame[frame.labelled == share].groupby("method")[measure]}
            beside = (i - (len(shares) - 1) / 2) * 0.8 / len(shares)
            places = [methods.index(method) + beside * (method not in UNLABELLED) for method in rows]
            colours = [GREYS[2] if method in UNLABELLED else ordered_colour(share) for method in rows]
            draw_bars(axes, places, list(rows.values()), 0.8 / len(shares), color=colours)
        axes.set_title(f"Forget documents: {title}")
        axes.set_ylabel("loss (nats per token)")
    axes.set_xticks(range(len(methods)), [STYLES[method][0] for method in methods], rotation=30, ha="right")
    figure.suptitle(f"Routed words: {over_seeds(frame.groupby(['method', 'labelled']).seed.nunique())}")
    handles = [Patch(color=ordered_colour(share), label=f"{share:.0%} labelled") for share in shares]
    figure.legend(handles=[*handles, Patch(color=GREYS[2], label="without labels")], loc="outside right center")
    return figure


def _groups(methods: Iterable[str]) -> dict[str, list[str]]:
    """Return the methods of each column. A column of nothing but controls and what the first column has is left out."""
    there = set(methods)
    first, second = ([method for method in names if method in there] for names in GROUPS.values())
    titles = iter(GROUPS)
    found = {next(titles): first, next(titles): second}
    return found if set(second) - set(first) else {next(iter(GROUPS)): first}
