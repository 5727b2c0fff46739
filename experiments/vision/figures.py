"""The figures of the vision commands: error by digit, images, latent traversal, accuracy by group of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from routed_rl.runs.figures import GREYS, PALETTE, over_seeds, save, subplots
from routed_rl.runs.figures import draw_bars as bars_over_seeds
from routed_rl.runs.style import styled

COLOURS = {"decoder": GREYS[0], "top": PALETTE["blue"], "bottom": PALETTE["orange"]}
HATCHES = {"decoder": "", "top": "///", "bottom": "..."}
"""Patterns that tell bars apart without colour."""
NAMES = {"decoder": "decoder (whole encoding)", "top": "certificate, top half", "bottom": "certificate, bottom half"}
PICTURES = {"input": "input", "decoder": "decoder", "top": "top half", "bottom": "bottom half"}


@styled()
def draw_bars(frame: pd.DataFrame, titles: Mapping[str, str], top: Sequence[int], path: Path) -> None:
    """Validation error by digit, of the decoder and both certificates: mean and 95 % interval. One panel per setting.

    Args:
        frame: the rows of ``results.csv``.
        titles: titles of the settings to draw.
        top: digits routed to the top half. They are shaded.
    """
    wide = min(2, len(titles))
    tall = -(-len(titles) // wide)
    figure, plots = subplots(tall, wide, height=0.9 + 1.6 * tall, sharey=True, squeeze=False)
    for axes, (setting, title) in zip(plots.flat, titles.items(), strict=False):
        rows = frame[(frame.setting == setting) & frame.group.str.isdigit()]
        _bars(axes, rows, "mse", sorted(rows.group.unique()))
        constant = rows[rows.part == "constant"].groupby("group").mse.mean()
        places = np.arange(len(constant))
        label = "median training image (constant)"
        axes.hlines(constant, places - 0.45, places + 0.45, color="black", linestyle=":", linewidth=1, label=label)
        for digit in top:
            axes.axvspan(digit - 0.5, digit + 0.5, color=COLOURS["top"], alpha=0.1, linewidth=0, zorder=0)
        axes.set_title(title)
    constants = frame[(frame.part == "constant") & frame.setting.isin(list(titles)) & frame.group.str.isdigit()]
    for axes in plots[:, 0]:
        axes.set(ylabel="mean squared\nerror", ylim=(0, 1.2 * constants.mse.max()))
    for axes in plots[-1]:
        axes.set_xlabel("digit")
    for axes in plots.flat[len(titles) :]:
        axes.set_visible(False)
    routed = " (shaded: routed to the top half)" if top else ""
    _legend(figure, plots[0, 0], f"Validation error by digit{routed}: {over_seeds([frame.seed.nunique()])}")
    save(figure, path)


@styled()
def draw_pictures(pictures: Mapping[str, Mapping[str, Sequence[str]]], path: Path) -> None:
    """One validation image per digit, and its reconstructions by the decoder and both certificates, by setting.

    Args:
        pictures: pixels in hex, by title of the setting and by part.
    """
    wide = min(2, len(pictures))
    tall = -(-len(pictures) // wide)
    figure, plots = subplots(tall, wide, height=0.4 + tall * (0.35 + 2.6 / wide), squeeze=False)
    for axes, (title, parts) in zip(plots.flat, pictures.items(), strict=False):
        _mosaic(axes, [parts[part] for part in PICTURES])
        _rows(axes, list(PICTURES.values()))
        axes.set_title(title)
    for axes in plots.flat[len(pictures) :]:
        axes.set_visible(False)
    figure.suptitle("Reconstructions from the whole encoding (decoder) and from each half (certificates), first seed")
    save(figure, path)


@styled()
def draw_traversal(traversal: Sequence[Sequence[str]], path: Path) -> None:
    """The output of the decoder when one latent rises from 0 and all others stay at 0. One row per latent.

    Args:
        traversal: pixels in hex, by latent and step.
    """
    figure, axes = subplots(height=6.5)
    _mosaic(axes, traversal)
    _rows(axes, [f"latent {digit}" for digit in range(len(traversal))])
    axes.set_xlabel("value of the latent: from 0 to its 99 % quantile →")
    axes.set_title("Images by one latent; digit d trains latent d (first seed)")
    save(figure, path)


@styled()
def draw_groups(frame: pd.DataFrame, titles: Mapping[bool, str], path: Path) -> None:
    """Validation accuracy of the decoder and both certificates, by group of classes: mean and 95 % interval.

    Args:
        frame: columns ``routed``, ``part``, ``group``, ``accuracy``.
        titles: titles of the routed runs and of the control, for those that exist.
    """
    figure, plots = subplots(1, len(titles), height=3.6, sharey=True, squeeze=False)
    for axes, (routed, title) in zip(plots[0], titles.items(), strict=True):
        rows = frame[frame.routed == routed]
        _bars(axes, rows, "accuracy", list(dict.fromkeys(rows.group)))
        axes.set(ylim=(0, 1), xlabel="classes")
        axes.set_title(title)
    plots[0, 0].set_ylabel("validation accuracy")
    _legend(figure, plots[0, 0], f"Accuracy by group of classes: {over_seeds([frame.seed.nunique()])}")
    save(figure, path)


def _bars(axes: Any, frame: pd.DataFrame, metric: str, groups: Sequence[str]) -> None:
    """Draw three bars per group: decoder and certificates."""
    width = 0.27
    for place, (part, colour) in enumerate(COLOURS.items(), start=-1):
        rows = frame[frame.part == part]
        samples = [rows[rows.group == group][metric].to_numpy() for group in groups]
        style = {"color": colour, "hatch": HATCHES[part], "edgecolor": "white", "linewidth": 0, "label": NAMES[part]}
        bars_over_seeds(axes, np.arange(len(groups)) + place * width, samples, width, **style)
    axes.set_xticks(np.arange(len(groups)), groups)


def _legend(figure: Any, axes: Any, title: str) -> None:
    figure.suptitle(title)
    handles, labels = axes.get_legend_handles_labels()  # lines first, then bars
    others = len(labels) - len(COLOURS)
    handles, labels = (entries[others:] + entries[:others] for entries in (handles, labels))
    figure.legend(handles, labels, loc="outside lower center", ncol=len(labels))


def _mosaic(axes: Any, rows: Sequence[Sequence[str]]) -> None:
    """Draw square grey images, given as pixels in hex, in rows."""
    pixels = [[np.frombuffer(bytes.fromhex(picture), dtype=np.uint8) for picture in row] for row in rows]
    side = round(len(pixels[0][0]) ** 0.5)
    gap = max(1, side // 14)
    padded = [[np.pad(p.reshape(side, side), gap, constant_values=255) for p in row] for row in pixels]
    axes.imshow(np.block(padded), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.spines[:].set_visible(False)


def _rows(axes: Any, names: Sequence[str]) -> None:
    bottom, top = axes.get_ylim()
    height = abs(bottom - top) / len(names)
    axes.set_yticks([(row + 0.5) * height for row in range(len(names))], names)
    axes.tick_params(length=0)
