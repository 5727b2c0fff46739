"""Interactive charts of a study: points with a seed each, drawn by Bokeh in a report or a page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from routed_rl.runs.figures import MOST, PALETTE
from routed_rl.runs.files import plain_json, read_json, write_json
from routed_rl.runs.tables import half_interval

if TYPE_CHECKING:
    from bokeh.plotting import figure

COLUMNS = ("series", "x", "y", "seed")
TICKS = 12
"""A chart with at most so many places on its x axis has a tick at each."""
DASHES = ("solid", "dashed", "dotted", "dashdot")
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "x")


@dataclass(frozen=True)
class Chart:
    """Curves over seeds, as numbers.

    Attributes:
        title: what is shown.
        x: the x axis, with its unit.
        y: the y axis, with its unit.
        points: a row per point of a curve and seed, with the columns :data:`COLUMNS`.
        log_x: whether the x axis is logarithmic.
        colours: of curves by name, as in the figures of the study; others get the next free one.
        joined: whether the points of a curve are joined by a line.
    """

    title: str
    x: str
    y: str
    points: pd.DataFrame
    log_x: bool = False
    colours: Mapping[str, str] = field(default_factory=dict)
    joined: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", self.points.dropna(subset=["y"]))

    @property
    def series(self) -> list[str]:
        """The names of the curves: those with most points first, and of these the highest at its end."""
        ends = {name: self.means(name) for name in dict.fromkeys(map(str, self.points.series))}
        return sorted(ends, key=lambda name: (-len(ends[name]), -ends[name]["mean"].iloc[-1]))

    def only(self, names: Collection[str]) -> Chart:
        """Return the chart with the curves of these names alone, in the colours that they have here."""
        return replace(self, points=self.points[self.points.series.isin(list(names))], colours=self._all_colours())

    def _all_colours(self) -> dict[str, str]:
        taken = set(self.colours.values())
        free = cycle([colour for colour in PALETTE.values() if colour not in taken] or PALETTE.values())
        return {name: self.colours.get(name) or next(free) for name in self.series}

    def means(self, name: str) -> pd.DataFrame:
        """Return the curve of this name: ``x``, ``mean`` over seeds, ``half`` its 95 % interval, number of ``seeds``.

        ``half`` is NaN for a single seed.
        """
        of = self.points[self.points.series == name].groupby("x").y
        rows = [(x, y.mean(), half_interval(y), len(y)) for x, y in of]
        return pd.DataFrame(rows, columns=["x", "mean", "half", "seeds"])

    def draw(self, **options: Any) -> figure:
        """Return a Bokeh figure: means as lines, and each seed as a point. A click on a name hides its curve.

        Args:
            options: of ``bokeh.plotting.figure``: width, height, sizing_mode.
        """
        from bokeh.models import HoverTool, Legend
        from bokeh.plotting import figure

        height = 360 + 24 * -(-len(self.series) // 2)  # the legend below has two names a line
        usual = {"height": height, "sizing_mode": "stretch_width", "toolbar_location": "above"}
        axes = {"x_axis_label": self.x, "y_axis_label": self.y, "x_axis_type": "log" if self.log_x else "linear"}
        plot = figure(title=self.title, tools="pan,wheel_zoom,box_zoom,reset,save", **{**usual, **axes, **options})
        plot.toolbar.active_scroll = None  # the wheel scrolls the page
        plot.toolbar.logo = None
        places = sorted({float(x) for x in self.points.x})
        if len(places) <= TICKS and all(len(f"{place:g}") <= 4 for place in places):  # as shares: a tick at each
            plot.xaxis.ticker = places
            plot.xaxis.major_label_overrides = {place: f"{place:g}" for place in places}
        entries = []
        known = list(self.colours)
        for number, (name, colour) in enumerate(self._all_colours().items()):
            number = known.index(name) if name in known else number  # the same look in all charts of the study
            marker, dash = MARKERS[number % len(MARKERS)], DASHES[number // MOST % len(DASHES)]
            means, points = self.means(name), self.points[self.points.series == name]
            shown = {"color": colour}
            whole = {**means.to_dict("list"), "name": [name] * len(means)}
            whole["interval"] = [f" ± {half:.3g}" if np.isfinite(half) else "" for half in means["half"]]
            lines = [plot.line("x", "mean", source=whole, line_width=2, line_dash=dash, **shown)] if self.joined else []
            mean = plot.scatter("x", "mean", source=whole, marker=marker, size=7 if len(means) < 15 else 4, **shown)
            each = {"x": points.x, "y": points.y, "seed": points.seed.astype(str), "name": [name] * len(points)}
            seeds = plot.scatter("x", "y", source=each, size=4, alpha=0.4, **shown)
            tips = [("", "@name"), (self.x, "@x{0.[000]}")]
            several = [("mean of @seeds seeds", "@mean{0.000}@interval")]
            plot.add_tools(HoverTool(renderers=[mean], tooltips=tips + several))
            plot.add_tools(HoverTool(renderers=[seeds], tooltips=[*tips, (self.y, "@y{0.000}"), ("seed", "@seed")]))
            entries.append((name, [*lines, mean, seeds]))
        # Below the plot, where it leaves room for the curves on a narrow screen too.
        look = {"ncols": 2, "location": "top_left", "border_line_color": None}
        plot.add_layout(Legend(items=entries, click_policy="hide", **look), "below")
        return plot


def write_charts(charts: Mapping[str, Chart], path: Path) -> None:
    """Write charts as JSON, in their order, to be read by :func:`read_charts`."""
    write_json(path, [{"name": name, **_as_json(chart)} for name, chart in charts.items()])


def read_charts(path: Path) -> dict[str, Chart]:
    """Return the charts of a file that :func:`write_charts` has written; ValueError if it is none."""
    found = read_json(path)
    try:
        return {chart.pop("name"): Chart(**{**chart, "points": _points(chart["points"])}) for chart in found}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} holds no charts of a study: {error}") from None


def _as_json(chart: Chart) -> dict[str, Any]:
    points = {column: chart.points[column].tolist() for column in COLUMNS}
    return plain_json({**vars(chart), "points": points}, "chart")


def _points(columns: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({name: columns[name] for name in COLUMNS})
