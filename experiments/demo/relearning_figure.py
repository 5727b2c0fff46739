"""The figure of relearning curves, which readers can point at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any, Protocol

import pandas as pd
import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, Legend, Span
from bokeh.plotting import figure

HEIGHT = 460
"""Height of the figure, in pixels."""
MOST = 7
"""Most models in a figure."""
COLORS = {"reference": "#808080", "filtered": "#d55e00", "suppressed": "#2f86c5", "distilled": "#009e73"}
"""Colours of kinds of models that can be seen on light and on dark pages."""
SHADES = ("#c2649a", "#a97a00", "#8a6fd1", "#3f9f9f")
"""Colours of UNDO students."""
INKS = {"default": "#444444", "dark": "#dddddd"}
"""Colours of text, by the theme of the page."""
DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot", (8, 3), (2, 6))
MARKERS = ("circle", "square", "triangle", "inverted_triangle", "diamond", "plus", "x")
TRAINED = ("reference", "filtered")
"""Kinds of models that nothing was unlearned from."""


class Relearned(Protocol):
    """What attacks bring back.

    Attributes:
        rows: a row per model and seed, with a column ``forget_…`` for each step.
        steps: of the attack, in order.
        measured: what the numbers are, for axes.
        higher_is_better: whether a model with a larger number knows more.
    """

    @property
    def rows(self) -> pd.DataFrame: ...
    @property
    def steps(self) -> list[int]: ...
    @property
    def measured(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...


def drawn(rows: pd.DataFrame, suppressor: str | None, alpha: float | None) -> pd.DataFrame:
    """Return the rows of a figure: the reference, the filtered model, a suppressed model and its students.

    Args:
        rows: of :class:`Relearned`.
        suppressor: name of the suppressed model.
        alpha: noise level of UNDO students. New students have none, and are always drawn.
    """
    ours = rows.suppressor == suppressor
    usual = rows.strength.isna() | (rows.strength == 1)
    whole = rows.labelled.isna() | (rows.labelled == 1)
    chosen = rows[(rows.model.isin(TRAINED) & rows.labelled.isna()) | (ours & usual & whole)]
    chosen = chosen[chosen.alpha.isna() | (chosen.alpha == alpha)]
    names = list(dict.fromkeys(chosen.sort_values("model", key=_place, kind="stable").name))[:MOST]
    return chosen[chosen.name.isin(names)].sort_values(
        "name", key=lambda column: column.map(names.index), kind="stable"
    )


def relearning_figure(results: Relearned, rows: pd.DataFrame, step: int) -> tuple[figure, Span]:
    """Return the relearning curves of rows, a line per model and seed, and the line that marks an attack step.

    Args:
        results: of the study.
        rows: of :func:`drawn`.
    """
    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        x_axis_label="attack step",
        y_axis_label=results.measured,
        y_axis_type="auto" if results.higher_is_better else "log",  # losses range over orders of magnitude
        tools="pan,wheel_zoom,box_zoom,reset,save",
        active_scroll=None,
    )
    plot.toolbar.logo = None
    ink = INKS.get(pn.config.theme, INKS["default"])
    plot.background_fill_alpha = plot.border_fill_alpha = 0
    plot.outline_line_color = None
    plot.grid.grid_line_color, plot.grid.grid_line_alpha = "#808080", 0.3
    for part in ("axis_label_text", "major_label_text", "axis_line", "major_tick_line", "minor_tick_line"):
        setattr(plot.axis, f"{part}_color", ink)
    items = [_curves(plot, name, rows[rows.name == name], results.steps, look) for name, look in _looks(rows).items()]
    points = [glyph for _, glyphs in items for glyph in glyphs[1::2]]
    plot.add_tools(HoverTool(renderers=points, tooltips=_tooltips(results.measured)))
    legend = Legend(items=items, ncols=2, spacing=10, label_text_font_size="10pt", label_text_color=ink)
    legend.background_fill_alpha, legend.border_line_color, legend.location = 0, None, "left"
    plot.add_layout(legend, "below")
    mark = Span(location=step, dimension="height", line_color="#888888", line_dash="dashed", line_width=2)
    plot.add_layout(mark)
    return plot, mark


def _looks(rows: pd.DataFrame) -> dict[str, tuple[str, Any, str]]:
    """Return the colour, the dash and the marker of each model."""
    kinds, students = dict(zip(rows.name, rows.model, strict=True)), cycle(SHADES)
    return {
        name: (next(students) if kind == "undo" else COLORS.get(kind, "#808080"), dash, marker)
        for (name, kind), dash, marker in zip(kinds.items(), DASHES, MARKERS, strict=False)
    }


def _curves(
    plot: figure, name: str, rows: pd.DataFrame, steps: Sequence[int], look: tuple[str, Any, str]
) -> tuple[str, list[Any]]:
    """Draw the curves of a model, one for each seed, and return its name and its glyphs: lines and points in turn."""
    color, dash, marker = look
    glyphs = []
    for row in rows.to_dict("records"):
        values = {step: row[f"forget_{step}"] for step in steps if pd.notna(row[f"forget_{step}"])}
        of_all = {"model": [name] * len(values), "seed": [row["seed"]] * len(values)}
        source = ColumnDataSource({"step": list(values), "forget": list(values.values()), **of_all})
        glyphs.append(plot.line("step", "forget", source=source, color=color, line_dash=dash, line_width=2))
        glyphs.append(plot.scatter("step", "forget", source=source, color=color, marker=marker, size=7))
    return name, glyphs


def _tooltips(measured: str) -> list[tuple[str, str]]:
    return [("model", "@model"), ("seed", "@seed"), ("attack step", "@step"), (measured, "@forget{0.000}")]


def _place(models: pd.Series) -> pd.Series:
    order = list(COLORS)
    return models.map(lambda model: order.index(model) if model in order else len(order))
