"""The interactive charts of an UNDO study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from routed_rl.runs.charts import COLUMNS, Chart
from routed_rl.runs.figures import ordered_colour
from routed_rl.unlearning.attacks import WorstCase
from routed_rl.unlearning.metrics import Metric
from routed_rl.unlearning.undo_study.figures import LOOKS, suppressed_looks
from routed_rl.unlearning.undo_study.members import Member


def relearning_chart(curves: Mapping[Member, WorstCase], metric: Metric) -> Chart:
    """The forget performance under attack, by model: the attacker's best result within so many steps."""
    rows = [
        (member.name, step, forget, member.seed)
        for member, case in curves.items()
        for step, forget in zip(case.steps, case.forget, strict=True)
    ]
    title = "Relearning attack: worst case within so many steps"
    points = pd.DataFrame(rows, columns=list(COLUMNS))
    return Chart(title, "attack steps", f"forget {metric.unit}", points, colours=_colours(curves))


def _colours(members: Iterable[Member]) -> dict[str, str]:
    """Return the colour of each model, as in the figures of the study."""
    from matplotlib.colors import to_hex

    members = list(members)
    methods = suppressed_looks(member.suppressor for member in members)
    found = {}
    for member in members:
        if member.model == "undo" and member.alpha is not None:
            found[member.name] = to_hex(ordered_colour(member.alpha))
        elif member.model in LOOKS:
            found[member.name] = LOOKS[member.model]["color"]
        elif member.suppressor is not None:
            found[member.name] = methods[member.suppressor]["color"]
    return found


def robustness_chart(frame: pd.DataFrame) -> Chart:
    """Robustness against compute, a point per noised student. ``frame`` has the rows of ``results.csv``."""
    undone = frame[(frame.model == "undo") & frame.robustness.notna() & frame.compute.notna()]
    points = pd.DataFrame(
        {
            "series": [f"{row.suppressor}, β {row.beta:g}" for row in undone.itertuples()],
            "x": 100 * undone.compute.astype(float),
            "y": 100 * undone.robustness.astype(float),
            "seed": undone.seed,
        }
    )
    title = "Robustness and compute of UNDO: 0 % is the suppressed model, 100 % the filtered model"
    return Chart(
        title, "steps of distillation (% of the filtered model's steps)", "robustness (%)", points, joined=False
    )
