"""The tab "Study": charts and tables of any study, also of one that is not finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from routed_rl.experiments.common.agents.worlds import wanted
from routed_rl.experiments.demo.agents import is_agent
from routed_rl.rl import OversightReport
from routed_rl.runs.charts import Chart, read_charts
from routed_rl.runs.grid import called, is_finished
from routed_rl.runs.page import rendered
from routed_rl.runs.studies import CHARTS, LEADERBOARD, SUMMARY, planned, progress
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
    """Return what there is to show of a study. The charts of an oversight study are there before it is finished.

    Raises:
        ValueError: if a file of the study is damaged.
    """
    done, count = progress(directory)
    them = called(directory / name for name in planned(directory))
    state = f"All {count} {them} are finished." if count else "This study does not say how many runs it has."
    if done < count:
        state = f"This study is not finished: {done} of {count} {them} are done."
        runs = [directory / name for name in planned(directory) if is_finished(directory / name)]
        if runs and is_agent(runs[0]):
            by_method: dict[str, list[Path]] = {}
            for run in runs:
                by_method.setdefault(run.parent.name, []).append(run)
            found = OversightReport(by_method, wanted(runs[0])).find()
            if found is not None:
                charts = {name: draw() for name, draw in found.charts.items()}
                return Results(f"{state} What follows is of these.", charts, found.summary)
    if not (directory / CHARTS).is_file():
        return Results(f"{state} Charts are there when it is finished." if done < count else state, {}, "")
    if done < count:
        state += " What follows was written before."
    ranked = (directory / LEADERBOARD).is_file()
    summary = (directory / (LEADERBOARD if ranked else SUMMARY)).read_text(encoding="utf-8")
    return Results(state, read_charts(directory / CHARTS), summary)


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
    head = pmui.Alert(title=results.state, alert_type="success" if results.state.startswith("All") else "info")
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
        pmui.Accordion(("Summary of the study", pn.pane.HTML(rendered(results.summary), sizing_mode="stretch_width"))),
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
