"""The figures of ``routed-rl undo``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.canvas import plt, save
from experiments.tables import half_interval
from experiments.undo_stages import Member
from routed_rl.unlearning import WorstCase

LABELS = {"answers": "right answers on what is forgotten", "loss": "loss on what is forgotten (nats)"}


def draw(frame: pd.DataFrame, curves: Mapping[Member, WorstCase], metric: str, out: Path) -> None:
    """All figures for which the models are there."""
    draw_relearning(curves, metric, out / "relearning.png")
    undone = frame[frame.model == "undo"]
    if undone.robustness.notna().any():
        draw_trade_off(undone, out / "compute.png")


def draw_relearning(curves: Mapping[Member, WorstCase], metric: str, path: Path) -> None:
    """What is known of what was forgotten against steps of the attack, at the worst learning rate of each."""
    groups: dict[str, list[WorstCase]] = {}
    for member, case in curves.items():
        groups.setdefault(member.name, []).append(case)
    figure, axis = plt.subplots(figsize=(8, 5))
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(groups)))
    for (label, cases), color in zip(groups.items(), colors, strict=True):
        values = np.array([case.forget for case in cases])
        mean, half = values.mean(axis=0), half_interval(values)
        axis.plot(cases[0].steps, mean, label=label, color=color)
        axis.fill_between(cases[0].steps, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
    axis.set(xlabel="step of the attack", ylabel=LABELS[metric], title="Relearning, worst learning rate at every step")
    axis.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    save(figure, path)


def draw_trade_off(undone: pd.DataFrame, path: Path) -> None:
    """Robustness against compute, a point for each model, with a line through them."""
    figure, axis = plt.subplots(figsize=(6.5, 5))
    x, y = 100 * undone.compute.astype(float), 100 * undone.robustness.astype(float)
    points = axis.scatter(x, y, c=undone.alpha.astype(float), cmap="viridis")
    figure.colorbar(points, label="α")
    if x.nunique() > 1:
        slope, intercept = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        axis.plot(ends, intercept + slope * ends, "--", color="#999999", label="fit")
    axis.plot(100, 100, "*", color="#d62728", markersize=14, label="filtered")
    axis.set(xlabel="compute, % of the filtered model's steps", ylabel="robustness, %")
    axis.legend(frameon=False)
    figure.tight_layout()
    save(figure, path)
