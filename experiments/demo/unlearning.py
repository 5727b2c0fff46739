"""The tab about unlearning that resists relearning: curves and a leaderboard of UNDO studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import panel as pn

from routed_rl.experiments.demo import parts
from routed_rl.experiments.demo.relearning_figure import HEIGHT, drawn, relearning_figure
from routed_rl.experiments.demo.undo_results import UndoResults, is_undo, leaderboard, read_undo

STUDIES = {"routed-rl undo --alphas 0.4 0.6 0.8": "six minutes on two cores"}
"""Commands whose studies this tab shows, and how long they take."""
COMPARABLE = {True: "yes", False: "no", None: "–"}


@dataclass(frozen=True)
class _Study:
    """A study's directory, and its name in the page."""

    title: str
    directory: Path


def unlearning_tab(directories: Sequence[Path]) -> pn.viewable.Viewable:
    """Return the tab: relearning curves, and models in the order of their robustness.

    Args:
        directories: of studies of ``routed-rl undo``, finished or not. Others are passed over.
    """
    found = [_Study(directory.name, directory) for directory in directories if is_undo(directory)]
    if not found:
        return pn.Column(
            parts.missing("None of the directories has a study of routed-rl undo.", STUDIES), sizing_mode=parts.WIDE
        )
    chosen = parts.select("Study", found)
    chosen.visible = len(found) > 1
    content = pn.Column(sizing_mode=parts.WIDE)

    def fill(*events: Any) -> None:
        shown, problems = parts.collect([chosen.value.directory], lambda directory: [read_undo(directory)])
        content.objects = [*problems, *(view for results in shown for view in _study(results))]

    again = pn.widgets.Button(name="Read the study again")
    again.on_click(fill)
    chosen.param.watch(fill, "value")
    fill()
    return pn.Column(
        pn.pane.HTML("<h2>How fast do models relearn?</h2>"), chosen, content, again, sizing_mode=parts.WIDE
    )


def progress_text(results: UndoResults) -> str:
    """Return what is known about how far a study is. How many models it will have is not in its directory."""
    if results.is_done:
        return f"The study is finished. All {results.models} models have results."
    return (
        f"This study is not finished. {len(results.rows)} of {results.models} models that were started have results, "
        f"and {results.finished} of {results.stages} stages that were started are finished. To continue the study, "
        "give its command again."
    )


def _study(results: UndoResults) -> list[pn.viewable.Viewable]:
    """Return the views of a study."""
    progress = pn.pane.HTML(f'<p role="status">{progress_text(results)}</p>', sizing_mode=parts.WIDE)
    if not results.steps:
        return [progress, parts.note("No model has been attacked yet, so there are no curves.")]
    view = _Curves(results)
    return [progress, *view.widgets, view.figure, view.table]


class _Curves:
    """Relearning curves and the leaderboard, with their widgets."""

    def __init__(self, results: UndoResults) -> None:
        self.results = results
        rows = results.rows
        suppressors = list(dict.fromkeys(rows.suppressor.dropna()))
        alphas = sorted(set(rows.alpha.dropna()))
        self.suppressor = pn.widgets.Select(
            name="Suppression method", options=suppressors, visible=len(suppressors) > 1
        )
        self.alpha = pn.widgets.DiscreteSlider(
            name="Noise level α of UNDO students", options=alphas or [0.0], visible=bool(alphas), sizing_mode=parts.WIDE
        )
        last = results.steps[-1]
        self.step = pn.widgets.DiscreteSlider(
            name="Attack step", options=results.steps, value=last, sizing_mode=parts.WIDE
        )
        self.seeds = parts.switch("A row for each seed")
        self.figure = pn.pane.Bokeh(sizing_mode=parts.WIDE, min_height=HEIGHT)
        self.table = parts.html(self._table, self.step, self.seeds, name="leaderboard")
        for widget in (self.suppressor, self.alpha):
            widget.param.watch(self._draw, "value")
        self.step.param.watch(self._move, "value")
        self._draw()
        self.widgets = [
            parts.note(
                "A relearning attack fine-tunes each model on the forget set. A curve is the worst case within so many "
                "steps, over all learning rates. There is a line for each seed, and the vertical line is the attack "
                "step of the table."
            ),
            self.suppressor,
            self.alpha,
            self.step,
            self.seeds,
        ]

    def _draw(self, *events: Any) -> None:
        rows = drawn(self.results.rows, self.suppressor.value, self.alpha.value)
        self.figure.object, self.mark = relearning_figure(self.results, rows, self.step.value)

    def _move(self, *events: Any) -> None:
        self.mark.location = self.step.value

    def _table(self, step: int, seeds: Sequence[str]) -> str:
        board = leaderboard(self.results, step, bool(seeds))
        board["comparable"] = [COMPARABLE[None if pd.isna(value) else bool(value)] for value in board.comparable]
        for name in ("retain", "forget", "robustness"):
            board[name] = ["–" if pd.isna(value) else f"{value:z.3f}" for value in board[name]]
        steps = parts.attack_steps(step)
        heads = {"name": "model", "forget": f"forget within {steps}"}
        unit = self.results.unit
        return (
            f"<h3>Most robust within {steps}</h3>"
            + parts.paragraph(
                f"Retain and forget are {unit}. Retain is measured before the attack. Robustness is 0 for the "
                "suppressed model and 1 for the filtered model. It is comparable where the student is as good as its "
                "teacher on the retain set, and the teacher had forgotten. Students whose robustness is not comparable "
                "come after the others. “–”: not known, or not a student."
            )
            + parts.tabular(board.rename(columns=heads), "Models by robustness")
        )
