"""The figure of ``routed-rl steering-scalar``: the effect of steering, and the tokens along the routed dimension."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.runs.figures import GREYS, PALETTE, save, subplots
from routed_rl.runs.style import label_ends, styled

COLOURS = {True: PALETTE["blue"], False: GREYS[2]}
LINES = {True: "o-", False: "s--"}
"""Marker and line of routed models and controls."""
NAMES = {True: "routed", False: "not routed (control)"}
OUTSIDE = PALETTE["orange"]
SHOWN = 14
"""Number of tokens in the right plot."""


@styled()
def draw_steering(
    curves: pd.DataFrame, scores: pd.DataFrame, topics: Mapping[int, set[str]], tokens: Mapping[int, str], path: Path
) -> None:
    """Draw a row of two plots per axis: the topic's probability against the steering strength, and the tokens with the
    largest mean cosine in routed models.

    Args:
        curves: columns ``routed``, ``seed``, ``axis``, ``strength``, ``topic``.
        scores: columns ``routed``, ``seed``, ``axis``, ``text``, ``cosine``.
        topics: the tokens of each axis's topic.
        tokens: the routed token of each axis.
    """
    figure, plots = subplots(len(tokens), 2, height=0.5 + 3.9 * len(tokens), squeeze=False)
    for (left, right), (axis, token) in zip(plots, tokens.items(), strict=True):
        _curves(left, curves[curves.axis == axis])
        left.set(
            xlabel=f"added to dimension {axis} of the residual stream",
            ylabel="probability that the next token is of the topic",
        )
        left.set_title(f"Steering towards {token!r} (thin lines: seeds)")
        _scores(right, scores[scores.axis == axis], token, topics[axis])
        right.set_title(f"Top tokens along dimension {axis} (bold: routed)")
    label_ends(figure, 12)
    save(figure, path)


def _curves(axes: Any, curves: pd.DataFrame) -> None:
    for routed, runs in sorted(curves.groupby("routed"), reverse=True):  # routed models first, as their curve is on top
        for _, run in runs.groupby("seed"):
            axes.plot(run.strength, run.topic, LINES[routed][1:], color=COLOURS[routed], alpha=0.5, linewidth=0.8)
        mean = runs.groupby("strength").topic.mean()
        axes.plot(mean.index, mean, LINES[routed], color=COLOURS[routed], linewidth=2, label=NAMES[routed])
    axes.set_ylim(0, 1.02)


def _scores(axes: Any, scores: pd.DataFrame, token: str, topic: set[str]) -> None:
    """Draw mean cosines of routed models as bars, of each model as dots, and of each control as crosses.

    Without routed models, the bars are means of the controls.
    """
    routed = bool(scores.routed.any())
    mean = scores[scores.routed == routed].groupby("text").cosine.mean().nlargest(SHOWN)
    places = {text: -place for place, text in enumerate(mean.index)}
    colours = [COLOURS[routed] if text in topic else OUTSIDE for text in mean.index]
    axes.barh(list(places.values()), mean, color=colours, alpha=0.8)
    for kind, marker in ((True, "."), (False, "x")):
        rows = scores[(scores.routed == kind) & scores.text.isin(mean.index)]
        if len(rows):
            label = "each routed model" if kind else "each control"
            axes.scatter(
                rows.cosine, rows.text.map(places), marker=marker, s=14, color="black", linewidths=0.7, label=label,
                alpha=0.7,
            )  # fmt: skip
    bars = f"mean of {'routed models' if routed else 'controls'}"
    axes.barh([0], [0], color=COLOURS[routed], label=f"{bars}: token of the topic")
    axes.barh([0], [0], color=OUTSIDE, label=f"{bars}: other token")
    axes.axvline(0, color="black", linewidth=0.6)
    shown = [text if text == text.strip() else repr(text) for text in places]
    axes.set_yticks(list(places.values()), shown)
    for label, text in zip(axes.get_yticklabels(), places, strict=True):
        label.set_fontweight("bold" if text == token else "normal")
    axes.set_xlabel("cosine of unembedding and dimension")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13))
