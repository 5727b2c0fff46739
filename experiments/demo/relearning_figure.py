"""The figure of relearning curves, which readers can point at."""

from __future__ import annotations

from itertools import cycle

import pandas as pd
from bokeh.models import ColumnDataSource, HoverTool, Legend, Span
from bokeh.plotting import figure

from routed_rl.experiments.demo.undo_results import UndoResults
from routed_rl.unlearning.undo_study.figures import COLORS

MOST = 7
"""Most models in a figure."""
SHADES = ("#cc79a7", "#e69f00", "#56b4e9", "#009e73")
"""Colours of students, if there are several."""
DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot", (8, 3), (2, 6))
MARKERS = ("circle", "square", "triangle", "inverted_triangle", "diamond", "plus", "x")
TRAINED = ("reference", "filtered")
"""Kinds of models that nothing was unlearned from."""


def drawn(rows: pd.DataFrame, suppressor: str | None, alpha: float | None) -> pd.DataFrame:
    """Return the rows of a figure: the reference, the filtered model, a suppressed model and its students.

    Args:
        rows: of :class:`UndoResults`.
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


def relearning_figure(results: UndoResults, rows: pd.DataFrame, step: int) -> tuple[figure, Span]:
    """Return the relearning curves of rows, a line per model and seed, and the line that marks an attack step.

    Args:
        results: of the study.
        rows: of :func:`drawn`.
    """
    plot = figure(
        height=420,
        sizing_mode="stretch_width",
        x_axis_label="attack step",
        y_axis_label=f"forget {results.unit}",
        tools="pan,wheel_zoom,box_zoom,reset,save",
        active_scroll=None,
    )
    plot.toolbar.logo = None
    names = list(dict.fromkeys(rows.name))
    students = cycle(SHADES)
    items = []
    for name, dash, marker in zip(names, DASHES, MARKERS, strict=False):
        own = rows[rows.name == name]
        kind = own.model.iloc[0]
        color = next(students) if kind == "undo" else COLORS.get(kind, "#777777")
        glyphs = []
        for row in own.to_dict("records"):
            values = {step: row[f"forget_{step}"] for step in results.steps if pd.notna(row[f"forget_{step}"])}
            source = ColumnDataSource(
                {
                    "step": list(values),
                    "forget": list(values.values()),
                    "model": [name] * len(values),
                    "seed": [row["seed"]] * len(values),
                }
            )
            line = plot.line("step", "forget", source=source, color=color, line_dash=dash, line_width=2)
            points = plot.scatter("step", "forget", source=source, color=color, marker=marker, size=7)
            plot.add_tools(HoverTool(renderers=[points], tooltips=_tooltips(results.unit)))
            glyphs += [line, points]
        items.append((name, glyphs))
    plot.add_layout(Legend(items=items, ncols=2, label_text_font_size="10pt", click_policy="hide"), "below")
    mark = Span(location=step, dimension="height", line_color="#888888", line_dash="dashed", line_width=2)
    plot.add_layout(mark)
    return plot, mark


def _tooltips(unit: str) -> list[tuple[str, str]]:
    return [("model", "@model"), ("seed", "@seed"), ("attack step", "@step"), (f"forget {unit}", "@forget{0.000}")]


def _place(models: pd.Series) -> pd.Series:
    order = list(COLORS)
    return models.map(lambda model: order.index(model) if model in order else len(order))
