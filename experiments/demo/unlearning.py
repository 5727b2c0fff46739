"""The tab about unlearning that resists relearning: curves and leaderboards of UNDO studies and arenas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import panel as pn
from bokeh.models import NumberFormatter

from routed_rl.experiments.demo import parts
from routed_rl.experiments.demo.arena_results import ArenaResults, read_arena
from routed_rl.experiments.demo.relearning_view import RelearningView
from routed_rl.experiments.demo.stages import is_arena, is_undo
from routed_rl.experiments.demo.undo_results import UndoResults, leaderboard, read_undo
from routed_rl.unlearning.arena.leaderboard import WORST

STUDIES = {
    "routed-rl undo --alphas 0.4 0.6 0.8": "six minutes on two cores",
    "routed-rl arena --quick": "a few minutes on two cores",
}
"""Commands whose studies this tab shows, and how long they take."""
COMPARABLE = {True: "yes", False: "no", None: "–"}
NO_ATTACK = "No model has been attacked yet, so there are no curves."
NUMBERS = {
    **{name: NumberFormatter(format="0.000", nan_format="–") for name in ("before", "after", "excess", "utility")},
    "α": NumberFormatter(format="0.[00]", nan_format="–"),
}


@dataclass(frozen=True)
class _Study:
    """A study's directory, its name in the page, and what makes its views."""

    title: str
    directory: Path
    views: Callable[[Path], list[pn.viewable.Viewable]]


def unlearning_tab(directories: Sequence[Path]) -> pn.viewable.Viewable:
    """Return the tab: relearning curves, and models in the order of their robustness.

    Args:
        directories: of studies of ``routed-rl undo`` and ``arena``, finished or not. Others are passed over.
    """
    found, damaged = parts.collect(directories, _find)
    if not found:
        text = "None of the directories has a study of routed-rl undo or arena."
        return pn.Column(*damaged, parts.missing(text, STUDIES), sizing_mode=parts.WIDE)
    chosen = parts.select("Study", found)
    chosen.visible = len(found) > 1
    content = pn.Column(sizing_mode=parts.WIDE)

    def fill(*events: Any) -> None:
        shown, problems = parts.collect([chosen.value.directory], chosen.value.views)
        content.objects = [*problems, *shown]

    again = pn.widgets.Button(name="Read the study again")
    again.on_click(fill)
    chosen.param.watch(fill, "value")
    fill()
    heading = pn.pane.HTML("<h2>How fast do models relearn?</h2>")
    return pn.Column(heading, *damaged, chosen, content, again, sizing_mode=parts.WIDE)


def _find(directory: Path) -> list[_Study]:
    if is_undo(directory):
        return [_Study(directory.name, directory, lambda path: _undo(read_undo(path)))]
    if is_arena(directory):
        return [_Study(directory.name, directory, lambda path: _arena(read_arena(path)))]
    return []


def progress_text(results: UndoResults) -> str:
    """Return what is known about how far a study is. How many models it will have is not in its directory."""
    if results.is_done:
        return f"The study is finished. All {results.models} models have results."
    return (
        f"This study is not finished. {len(results.rows)} of {results.models} models that were started have results, "
        f"and {results.finished} of {results.stages} stages that were started are finished. To continue the study, "
        "give its command again."
    )


def _undo(results: UndoResults) -> list[pn.viewable.Viewable]:
    """Return the views of an UNDO study."""
    if not results.steps:
        return [_status(progress_text(results)), parts.note(NO_ATTACK)]
    view = _UndoView(results)
    return [_status(progress_text(results)), *view.widgets, view.figure, view.table]


def _arena(results: ArenaResults) -> list[pn.viewable.Viewable]:
    """Return the views of an arena."""
    stages = f"{results.finished} of {results.stages} stages"
    text = f"The study is finished: {stages} are done."
    if results.finished < results.stages:
        attacked = sum(map(bool, results.models.attacks))
        text = (
            f"This study is not finished: {stages} are done. What follows is of the {attacked} models, over all seeds, "
            "on which an attack is finished. To continue the study, give its command again."
        )
    if results.looks.empty:
        return [_status(text), parts.note(NO_ATTACK)]
    view = _ArenaView(results)
    return [_status(text), *view.widgets, view.figure, view.table]


def _status(text: str) -> pn.pane.HTML:
    return pn.pane.HTML(f'<p role="status">{text}</p>', sizing_mode=parts.WIDE)


class _UndoView(RelearningView):
    """Relearning curves of an UNDO study, and its leaderboard."""

    def __init__(self, results: UndoResults) -> None:
        super().__init__(
            results,
            "A relearning attack fine-tunes each model on the forget set. A curve is the worst case within so many "
            "steps, over all learning rates. There is a line for each seed, and the vertical line is the attack "
            "step of the table.",
        )
        self.undo = results
        self.table = parts.html(self._table, self.step, self.seeds, name="leaderboard")

    def _table(self, step: int, seeds: Sequence[str]) -> str:
        board = leaderboard(self.undo, step, bool(seeds))
        board["comparable"] = [COMPARABLE[None if pd.isna(value) else bool(value)] for value in board.comparable]
        for name in ("retain", "forget", "robustness"):
            board[name] = ["–" if pd.isna(value) else f"{value:z.3f}" for value in board[name]]
        steps = parts.attack_steps(step)
        heads = {"name": "model", "forget": f"forget within {steps}"}
        unit = self.undo.unit
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


class _ArenaView(RelearningView):
    """What each attack of an arena brings back, and the leaderboard of the chosen attack."""

    def __init__(self, arena: ArenaResults) -> None:
        self.arena = arena
        found = {name: name for name in arena.attacks if len(arena.curves(name).rows)}
        worst = {"all of them, the worst for each model": WORST} if len(arena.curves(WORST).rows) else {}
        self.attack = pn.widgets.Select(name="Attack", options={**worst, **found})
        super().__init__(
            arena.curves(self.attack.value),
            f"A curve is the most of the main score, {arena.main}, that an attack has brought back within so many of "
            "its steps, over all its attempts. There is a line for each seed, and the vertical line is the attack step "
            "of the table.",
            self.attack,
        )
        self.attack.param.watch(lambda event: self.show(arena.curves(event.new)), "value")
        title = parts.html(self._title, self.attack, self.step, name="leaderboard")
        self.board = pn.widgets.Tabulator(
            self._rows(), disabled=True, show_index=False, formatters=NUMBERS, sizing_mode=parts.WIDE, layout="fit_data"
        )
        for widget in (self.attack, self.step, self.seeds):
            widget.param.watch(self._fill, "value")
        self.table = pn.Column(title, self.board, sizing_mode=parts.WIDE)

    def _title(self, attack: str, step: int) -> str:
        kept = "Models that lost their utility, and then the full and the retrained model, come last. "
        return f"<h3>Least brought back within {parts.attack_steps(step)}</h3>" + parts.paragraph(
            f"Excess: by how much the attack brings {self.arena.main} above that of the retrained model under the same "
            f"attack, at the attempt and step where this is most. After: {self.arena.main} there. {kept}Utility is "
            f"{self.arena.utility or 'not measured'}; “kept” is what the study's own leaderboard says. A click on a "
            "head sorts the table."
        )

    def _fill(self, *events: Any) -> None:
        self.board.value = self._rows()

    def _rows(self) -> pd.DataFrame:
        each = bool(self.seeds.value)
        board = self.arena.leaderboard(self.attack.value, self.step.value, each)
        board["kept"] = [COMPARABLE[None if pd.isna(value) else bool(value)] for value in board.kept]
        heads = {"name": "model", "alpha": "α", "seed": "seed" if each else "seeds", "value": "after"}
        return board.rename(columns=heads)
