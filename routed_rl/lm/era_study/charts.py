"""The interactive charts of a study of Expand-Route-Ablate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from routed_rl.lm.era_study.figures import STYLES
from routed_rl.runs.charts import COLUMNS, Chart

MEASURES = {
    "unlearning": ("Unlearning: rise of the forget loss", "rise (nats per token)"),
    "robust": ("Robust unlearning: rise that is left after the attack", "rise (nats per token)"),
    "retain": ("Retain loss", "loss (nats per token)"),
}
"""Title and y axis by column of ``results.csv``."""
COLOURS = {method: style[1] for method, style in STYLES.items()}
Curve = Sequence[tuple[float, float]]


def measure_chart(frame: pd.DataFrame, measure: str) -> Chart:
    """One of :data:`MEASURES` by the share of labels. ``frame`` has the rows of ``results.csv``."""
    points = pd.DataFrame({"series": frame.method, "x": 100 * frame.labelled, "y": frame[measure], "seed": frame.seed})
    title, y = MEASURES[measure]
    return Chart(
        title, "forget documents that are labelled (%)", y, points.sort_values(["series", "x", "seed"]), colours=COLOURS
    )


def relearning_chart(curves: Mapping[tuple[str, float, int], Mapping[str, Sequence[Curve]]]) -> Chart:
    """The forget loss under the attack with most documents, mean over attacks.

    Args:
        curves: by method, share of labels and seed: by number of documents, a curve of each attack.
    """
    most = max((int(number) for of in curves.values() for number in of), default=0)
    rows = [
        (method, step, loss, seed)
        for (method, _, seed), of in curves.items()
        for step, loss in _mean(of.get(str(most), ()))
    ]
    title = f"Relearning attack with {most} document{'s' * (most != 1)}"
    return Chart(
        title, "attack step", "forget loss (nats per token)", pd.DataFrame(rows, columns=list(COLUMNS)), colours=COLOURS
    )


def _mean(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Return the mean of curves with the same steps, as far as all of them go."""
    return [(points[0][0], sum(loss for _, loss in points) / len(points)) for points in zip(*curves, strict=False)]
