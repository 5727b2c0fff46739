"""The interactive charts of an oversight study: true return by oversight level, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from routed_rl.rl.oversight_study.figures import Looks
from routed_rl.rl.oversight_study.table import compared, label_of, learning_curve, read_agent
from routed_rl.runs.charts import COLUMNS, Chart
from routed_rl.runs.tables import percent

RETURN = "true return"


def returns_chart(frame: pd.DataFrame, wanted: str, looks: Looks) -> Chart:
    """True return by oversight level. ``frame`` has the rows of ``results.csv``."""
    shown = compared(frame, wanted)
    points = pd.DataFrame(
        {"series": shown.label, "x": 100 * shown.oversight, "y": shown.true_return, "seed": shown.seed}
    )
    title = f"True return by oversight level, wanted outcome: {wanted}"
    return Chart(
        title, "oversight level (%)", RETURN, points.sort_values(["series", "x", "seed"]), True, _colours(looks)
    )


def curves_chart(runs: Mapping[tuple[str, str], Sequence[Path]], focus: float, looks: Looks) -> Chart:
    """Learning curves at one oversight level. ``runs`` are run directories by method and policy."""
    rows = [
        (label_of(*key), step / 1e6, value, seed)
        for key, directories in runs.items()
        for run in directories
        for seed in [read_agent(run).seed]
        for step, value in learning_curve(run, key[1])
    ]
    title = f"Learning curves at oversight level {percent(focus)}"
    return Chart(
        title,
        "environment steps (millions)",
        RETURN,
        pd.DataFrame(rows, columns=list(COLUMNS)),
        colours=_colours(looks),
    )


def _colours(looks: Looks) -> dict[str, str]:
    return {label: look["color"] for label, look in looks.items()}
