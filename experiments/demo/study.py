"""The tab "Study": charts and tables of any study, also of one that is not finished."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from routed_rl.experiments.common.agents.worlds import wanted
from routed_rl.experiments.demo.agents import is_agent
from routed_rl.experiments.demo.parts import TABLE_STYLES, titled
from routed_rl.rl import OversightReport
from routed_rl.runs.charts import Chart, read_charts
from routed_rl.runs.grid import called, is_finished
from routed_rl.runs.page import rendered
from routed_rl.runs.studies import CHARTS, LEADERBOARD, SUMMARY, planned, progress
from routed_rl.runs.tables import shown_mean

NONE = """
No study was named. A study is a directory that `routed-rl oversight`, `era`, `undo`, `arena` or another command with
many runs has made. For example, this command takes about two minutes on two cores:

    routed-rl oversight --methods routing naive --levels 0.05 --seeds 1 --out runs/small

Then start the demo with it: `routed-rl demo runs/small`.
"""


FIRST = (
    *("routed", "routed, sharpened (control)", "routing", "era", "control", "placebo"),
    *("naive", "base", "plain", "full", "reference", "oracle", "filtering", "retrained", "filtered"),
)
"""Curves that are shown first: the method that a study is about, its controls, and what it is compared with."""
MOST = 7
"""Most curves that are shown at first."""
LIGHT = 0.12
"""Least relative luminance of a line: three times as light as a dark page, as the rules of accessibility ask."""
STYLES = f"""{TABLE_STYLES}
.wide {{ overflow-x: auto; }}
.wide th, .wide td {{ white-space: nowrap; }}
figure {{ margin: 1em 0; }}
img {{ max-width: 100%; }}
"""


@dataclass(frozen=True)
class Results:
    """What there is to show of a study.

    Attributes:
        state: one sentence: how far the study is.
        charts: by name.
        summary: Markdown; empty: there is none.
        figures: image files.
    """

    state: str
    charts: Mapping[str, Chart]
    summary: str
    figures: Sequence[Path] = ()


def open_study(directory: Path) -> Results:
    """Return what there is to show of a study. The charts of an oversight study are there before it is finished.

    Raises:
        ValueError: if a file of the study is damaged.
    """
    done, count = progress(directory)
    written = next((path for name in (LEADERBOARD, SUMMARY) if (path := directory / name).is_file()), None)
    them = called(directory / name for name in planned(directory))
    state = f"All {count} {them} are finished."
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
        state += (
            " Its results are here when it is finished." if written is None else " What follows was written before."
        )
    elif not count:
        state = "This study has written its results." if written is not None else "This study has no results yet."
        state += " It does not say how many runs it has."
    charts = read_charts(directory / CHARTS) if (directory / CHARTS).is_file() else {}
    summary = "" if written is None else written.read_text(encoding="utf-8")
    return Results(state, charts, summary, sorted(directory.glob("*.png")))


def study_tab(directories: Sequence[Path]) -> Any:
    """Return the tab for studies of any kind."""
    if not directories:
        return pn.pane.Markdown(NONE)
    options = titled(directories, lambda directory: directory.name)
    choice = pmui.Select(label="Study", options=options, value=directories[0])
    return pn.Column(choice, pn.bind(_study, choice), sizing_mode="stretch_width")


def _study(directory: Path) -> Any:
    try:
        results = open_study(directory)
    except (ValueError, OSError) as error:
        return pmui.Alert(title=str(error), alert_type="error")
    kind = "success" if results.state.startswith(("All", "This study has written")) else "info"
    first, rest = _opening(results.summary)
    parts = [("The rest of the summary", _html(rendered(rest)))] if rest else []
    if results.figures:
        parts.append(("Figures", _html("".join(map(_figure, results.figures)))))
    return pn.Column(
        pmui.Alert(title=results.state, alert_type=kind),
        *([_html(rendered(first))] if first else []),
        *(_charts(results.charts) if results.charts else [pn.pane.Markdown("This study has no charts.")]),
        *([pmui.Accordion(*parts, active=list(range(len(parts))), sizing_mode="stretch_width")] if parts else []),
        sizing_mode="stretch_width",
    )


def _charts(charts: Mapping[str, Chart]) -> list[Any]:
    chart = pmui.Select(label="Chart", options=list(charts), value=next(iter(charts)))
    shown = pmui.MultiChoice(label="Curves")

    def choose(*_: Any) -> None:
        names = charts[chart.value].series
        shown.param.update(options=names, value=sorted(names, key=_place)[:MOST])

    choose()
    chart.param.watch(choose, "value")
    return [pmui.FlexBox(chart, shown), pn.bind(lambda names: _drawn(charts[chart.value], names), shown)]


def _place(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _opening(summary: str) -> tuple[str, str]:
    """Return what a summary claims first, which is all up to the end of its first table, and the rest."""
    lines = summary.splitlines()
    tables = [number for number, line in enumerate(lines) if line.startswith("|")]
    end = next((number for number in tables if number + 1 not in tables), len(lines)) + 1
    return "\n".join(lines[:end]), "\n".join(lines[end:]).strip()


def _html(text: str) -> Any:
    return pn.pane.HTML(text, stylesheets=[STYLES], sizing_mode="stretch_width")


def _figure(path: Path) -> str:
    """Return an image file as HTML."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"></figure>'


def _drawn(chart: Chart, names: Sequence[str]) -> Any:
    part = chart.only(names)
    part = replace(part, colours={name: _visible(colour) for name, colour in part.colours.items()})
    table = pn.widgets.Tabulator(
        _table(part), disabled=True, show_index=False, pagination="local", page_size=12, sizing_mode="stretch_width"
    )
    return pn.Column(pn.pane.Bokeh(part.draw(), sizing_mode="stretch_width"), table, sizing_mode="stretch_width")


def _visible(colour: str) -> str:
    """Return a colour, mixed with as much white as it needs to be seen on a dark page too.

    >>> _visible("#000000"), _visible("#0072b2")
    ('#666666', '#0072b2')
    """
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    mixed = next(found for white in np.linspace(0, 1, 21) if _light(found := parts + (1 - parts) * white) >= LIGHT)
    return "#" + "".join(f"{round(255 * part):02x}" for part in mixed)


def _light(parts: np.ndarray) -> float:
    """Return the relative luminance of red, green and blue."""
    return float(parts**2.2 @ (0.2126, 0.7152, 0.0722))


def _table(chart: Chart) -> pd.DataFrame:
    """Return means over seeds, a row for each curve and place on the x axis."""
    rows = [
        (name, row["x"], shown_mean(row), row["seeds"])
        for name in chart.series
        for row in chart.means(name).to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["curve", chart.x, chart.y, "seeds"])
