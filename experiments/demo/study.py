"""The tab "Study": charts and tables of any study, also of one that is not finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from routed_rl.rl import OversightReport
from routed_rl.runs.charts import Chart, read_charts
from routed_rl.runs.studies import CHARTS, SUMMARY, progress
from routed_rl.runs.tables import shown_mean

NONE = """
No study was named. A study is a directory that `routed-rl oversight`, `era` or `undo` has made. For example, this
command takes about two minutes on two cores:

    routed-rl oversight --methods routing naive --levels 0.05 --seeds 1 --out runs/small

Then start the demo with it: `routed-rl demo runs/small`.
"""


@dataclass(frozen=True)
class Results:
    """What there is to show of a study.

    Attributes:
        state: one sentence: how far the study is.
        charts: by name.
        summary: Markdown.
    """

    state: str
    charts: Mapping[str, Chart]
    summary: str


def open_study(directory: Path) -> Results:
    """Return what there is to show of a study. The charts of an oversight study are there before it is finished."""
    finished, planned = progress(directory)
    state = f"All {planned} runs are finished." if planned else "An earlier version has made this study."
    if finished < planned:
        state = f"This study is not finished: {finished} of {planned} runs are done. What follows is of these runs."
    if finished == planned and (directory / CHARTS).is_file():
        return Results(state, read_charts(directory / CHARTS), (directory / SUMMARY).read_text(encoding="utf-8"))
    runs: dict[str, list[Path]] = {}
    for path in sorted((directory / "runs").glob("*/*/evaluation.json")):
        runs.setdefault(path.parent.parent.name, []).append(path.parent)
    try:
        found = OversightReport(runs).find() if runs else None
    except ValueError:  # runs of another kind of study
        found = None
    if found is None:
        return Results(f"{state.split('. ')[0].rstrip('.')}. Its charts come when it is finished.", {}, "")
    return Results(state, {name: draw() for name, draw in found.charts.items()}, found.summary)


def study_tab(directories: Sequence[Path]) -> Any:
    """Return the tab for studies of any kind."""
    if not directories:
        return pn.pane.Markdown(NONE)
    choice = pmui.Select(label="Study", options=[str(path) for path in directories], value=str(directories[0]))
    return pn.Column(choice, pn.bind(_study, choice), sizing_mode="stretch_width")


def _study(directory: str) -> Any:
    try:
        results = open_study(Path(directory))
    except (ValueError, OSError) as error:
        return pmui.Alert(title=str(error), alert_type="error")
    head = pmui.Alert(title=results.state, alert_type="success" if results.state.startswith("All") else "warning")
    if not results.charts:
        return pn.Column(head, sizing_mode="stretch_width")
    chart = pmui.Select(label="Chart", options=list(results.charts), value=next(iter(results.charts)))
    shown = pmui.MultiChoice(label="Curves")

    def choose(*_: Any) -> None:
        names = results.charts[chart.value].series
        shown.param.update(options=names, value=names[:7])

    choose()
    chart.param.watch(choose, "value")
    return pn.Column(
        head,
        pmui.FlexBox(chart, shown),
        pn.bind(lambda names: _drawn(results.charts[chart.value], names), shown),
        pmui.Accordion(("Summary of the study", pn.pane.Markdown(results.summary, sizing_mode="stretch_width"))),
        sizing_mode="stretch_width",
    )


def _drawn(chart: Chart, names: Sequence[str]) -> Any:
    part = chart.only(names)
    table = pn.widgets.Tabulator(
        _table(part), disabled=True, show_index=False, pagination="local", page_size=12, sizing_mode="stretch_width"
    )
    return pn.Column(pn.pane.Bokeh(part.draw(), sizing_mode="stretch_width"), table, sizing_mode="stretch_width")


def _table(chart: Chart) -> pd.DataFrame:
    """Return means over seeds, a row for each curve and place on the x axis."""
    rows = [
        (name, row["x"], shown_mean(row), row["seeds"])
        for name in chart.series
        for row in chart.means(name).to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["curve", chart.x, chart.y, "seeds"])
