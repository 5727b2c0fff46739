"""Interactive charts of the vision commands: error and accuracy by digit, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from routed_rl.experiments.vision.splits import CONSTANT, SETTINGS, TEN_WAY
from routed_rl.runs.charts import Chart
from routed_rl.runs.figures import GREYS, PALETTE

OF = {"decoder": "the decoder", "top": "the top certificate", "bottom": "the bottom certificate"}
REFERENCE = "median training image (constant)"
CURVES = {setting: f"{setting}: {of.title}" for setting, of in SETTINGS.items()}
COLOURS = {**dict(zip(CURVES.values(), PALETTE.values(), strict=True)), REFERENCE: GREYS[0]}


def error_chart(frame: pd.DataFrame, part: str) -> Chart:
    """Return the validation error of a part by digit, a curve per setting.

    Args:
        frame: the rows of ``results.csv``.
        part: "decoder", "top" or "bottom".
    """
    split = _by_digit(frame[frame.setting != TEN_WAY])
    constant = split[(split.part == CONSTANT) & (split.setting == split.setting.iloc[0])].assign(series=REFERENCE)
    of = split[split.part == part]
    points = pd.concat([of.assign(series=of.setting.map(CURVES)), constant]).rename(columns={"mse": "y"})
    error = "mean squared error (pixels in -1 … 1)"
    return Chart(f"Validation error of {OF[part]}, by setting", "digit", error, points, colours=COLOURS)


def accuracy_chart(frame: pd.DataFrame) -> Chart:
    """Return how often the largest of ten latents is that of the digit, by digit; ``frame`` as above."""
    of = _by_digit(frame[frame.setting == TEN_WAY])
    points = of.assign(series="ten latents").rename(columns={"accuracy": "y"})
    return Chart("Accuracy of the largest of ten latents", "digit", "validation accuracy", points)


def loss_chart(losses: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]) -> Chart:
    """Return learning curves.

    Args:
        losses: rows with ``epoch`` and ``loss``, by the name of a curve and the seed.
    """
    rows = [(name, float(row["epoch"]), float(row["loss"]), seed) for (name, seed), of in losses.items() for row in of]
    points = pd.DataFrame(rows, columns=["series", "x", "y", "seed"])
    look = {"routed": PALETTE["blue"], "control": GREYS[2]}
    return Chart("Learning curves", "epoch", "training loss, with penalties", points, colours=look)


def _by_digit(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame[frame.group.str.isdigit()]
    return rows.assign(x=rows.group.astype(float))
