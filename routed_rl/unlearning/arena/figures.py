"""The figures of an arena."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from routed_rl.runs.figures import GREYS, MOST, PALETTE, in_panels, ordered_colour, over_seeds, subplots
from routed_rl.runs.style import styled
from routed_rl.runs.tables import half_interval
from routed_rl.unlearning.arena.entries import RETRAINED
from routed_rl.unlearning.benchmarks import Benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("ranks", "arrows", "compute")
KIND = ["before", "method", "then", "alpha", "kept"]
"""Columns of the leaderboard that say how a model is drawn."""
COLOURS = {"none": PALETTE["vermillion"], "distil": PALETTE["pink"]}
"""Colours of models by what followed the method. UNDO students have that of their α."""
MARKERS = {"none": "o", "era": "s"}
LINES = {"none": "-", "era": (0, (2, 1))}
NAMES = {"none": "method alone", "distil": "then distilled into a new model", "undo": "then UNDO, α {:g}"}


def figures(
    frame: pd.DataFrame, board: pd.DataFrame, benchmark: Benchmark, utility: str | None
) -> dict[str, Callable[[], Figure]]:
    """Return a function that draws each figure, for the figures whose models are finished.

    Args:
        frame: the rows of ``results.csv``.
        board: the leaderboard.
        utility: the score that says what a model has kept.
    """
    drawn: dict[str, tuple[Any, Callable[[], Figure]]] = {
        "ranks": (len(board), lambda: draw_ranks(frame, board, benchmark, utility)),
        "arrows": (utility is not None, lambda: draw_arrows(board, benchmark, str(utility))),
        "compute": (board.compute.notna().any(), lambda: draw_compute(board, benchmark)),
    }
    return {name: draw for name, (is_there, draw) in drawn.items() if is_there}


def _colour(row: Any) -> Any:
    if pd.isna(row.method):
        return GREYS[0]
    return ordered_colour(row.alpha) if row.then == "undo" else COLOURS[row.then]


def _marker(row: Any) -> str:
    return "*" if row.name == RETRAINED else MARKERS[row.before]


@styled()
def draw_ranks(frame: pd.DataFrame, board: pd.DataFrame, benchmark: Benchmark, utility: str | None) -> Figure:
    """Excess under the worst attack and utility, a line for each model, the best at the top."""
    worst, before = frame[frame.attack == "worst"], frame[frame.attack == "none"]
    excess = "excess" if worst.excess.notna().any() else "value"
    panels = [(worst, excess, f"{'excess of ' if excess == 'excess' else ''}{benchmark.main}, worst attack")]
    if utility is not None:
        panels.append((before[before.score == utility], "value", utility))
    figure, (drawn,) = subplots(1, len(panels), height=1.4 + 0.22 * len(board), sharey=True, squeeze=False)
    for axes, (rows, column, label) in zip(drawn, panels, strict=True):
        for place, (name, row) in enumerate(board.iterrows()):
            values = rows[rows.name == name][column].dropna().to_numpy(float)
            if not len(values):
                continue
            axes.plot(values.mean(), place, _marker(row), color=_colour(row), markersize=5)
            if len(values) > 2:
                half = half_interval(values)
                axes.plot([values.mean() - half, values.mean() + half], [place, place], color=_colour(row))
            elif len(values) == 2:
                axes.plot(values, [place, place], ".", color=_colour(row), markersize=3)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel(label)
    drawn[0].set_yticks(range(len(board)), [f"{name}{'' if of.kept else ' *'}" for name, of in board.iterrows()])
    drawn[0].set_ylim(len(board) - 0.4, -0.6)
    lost = "" if board.kept.all() else " * utility lost."
    note = over_seeds(frame.groupby("name").seed.nunique())
    figure.suptitle(f"Ranks, the best at the top ({note}).{lost}", x=0.01, ha="left")
    _legend(figure, board)
    return figure


def _legend(figure: Figure, board: pd.DataFrame) -> None:
    from matplotlib.lines import Line2D

    made = board[board.method.notna()]
    lines = [
        Line2D([], [], color=_colour(row), marker="o", label=NAMES[then].format(row.alpha))
        for then in NAMES
        for _, row in made[made.then == then].drop_duplicates("alpha").sort_values("alpha").iterrows()
    ]
    if (made.before == "era").any():
        look: dict[str, Any] = {"marker": MARKERS["era"], "linestyle": LINES["era"]}
        lines.append(Line2D([], [], color=GREYS[1], label="ERA beforehand", **look))
    for name, row in board[board.method.isna()].iterrows():
        lines.append(Line2D([], [], color=_colour(row), marker=_marker(row), linestyle="", label=f"{name} model"))
    figure.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), 5))


@styled()
def draw_arrows(board: pd.DataFrame, benchmark: Benchmark, utility: str) -> Figure:
    """Knowledge against utility, with an arrow from before to after the worst attack for each model.

    Knowledge is what exceeds that of the retrained model, where there is one: before the attack, and under the same
    attack. An attack that changes only what the model reads leaves its utility as it is.
    """
    is_excess = board["excess worst"].notna().any() and RETRAINED in board.index
    start, tip = board[benchmark.main], board["after worst"]
    if is_excess:
        start, tip = (start - start[RETRAINED]).clip(lower=0), board["excess worst"]
    end = board["utility after worst"].fillna(board[utility])
    shown = board[KIND].assign(x=board[utility], end=end, start=start, tip=tip).dropna(subset=["x", "start", "tip"])
    figure = _by_method(shown, utility, _arrow)
    figure.supylabel(f"{benchmark.main} of the forget set" + ",\nabove the retrained model's" * is_excess)
    figure.suptitle("Arrows: from before any attack to under the worst one (bottom right is best)")
    return figure


@styled()
def draw_compute(board: pd.DataFrame, benchmark: Benchmark) -> Figure:
    """Excess under the worst attack against compute."""
    shown = board[KIND].assign(x=100 * board.compute, y=board["excess worst"]).dropna(subset=["x", "y", "method"])
    figure = _by_method(shown, "compute (% of the\nretrained model's)", _point)
    figure.supylabel(f"excess of {benchmark.main}, worst attack")
    figure.suptitle("What robustness costs (bottom left is best; open: utility lost)")
    return figure


def _by_method(shown: pd.DataFrame, label: str, draw: Callable[[Any, Any], None]) -> Figure:
    """Draw the models of each method in a panel of their own, with the models without a method in each panel.

    Args:
        shown: the columns ``KIND``, and what ``draw`` needs, by name.
        label: of the horizontal axes.
        draw: draws a row of ``shown`` on axes.
    """
    compared = list(shown.index[shown.method.isna()])
    methods = shown[shown.method.notna()].groupby("method", sort=False)
    panels = [(name, part) for name, rows in methods for part in in_panels(list(rows.index), MOST - len(compared))]
    columns = max(1, min(4, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure, plots = subplots(rows, columns, height=1.5 + 1.8 * rows, sharex=True, sharey=True, squeeze=False)
    for axes in plots.flat[max(1, len(panels)) :]:
        axes.set_visible(False)
    for axes, (name, part) in zip(plots.flat, panels or [("", [])], strict=False):
        for _, row in shown.loc[[*compared, *part]].iterrows():
            draw(axes, row)
        axes.set_title(str(name))
    for axes in plots.flat[max(0, len(panels) - columns) : max(1, len(panels))]:  # the lowest of each column
        axes.set_xlabel(label)
        axes.tick_params(labelbottom=True)
    plots.flat[0].margins(x=0.1)
    plots.flat[0].set_ylim(-0.05, 1.05)
    _legend(figure, shown)
    return figure


def _arrow(axes: Any, row: Any) -> None:
    """Draw an arrow from ``row.x``, ``row.start`` to ``row.end``, ``row.tip``."""
    axes.plot(row.x, row.start, _marker(row), color=_colour(row), markersize=4)
    axes.update_datalim([(row.end, row.tip)])  # the axes must hold the tip too
    width = 2.0 if row.then == "none" else 1.2  # arrows of one method may lie on each other
    look = {"color": _colour(row), "linewidth": width, "linestyle": LINES[row.before], "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (row.end, row.tip), (row.x, row.start), arrowprops={"arrowstyle": "-|>", **look})


def _point(axes: Any, row: Any) -> None:
    face = _colour(row) if row.kept else "white"
    axes.plot(row.x, row.y, _marker(row), color=_colour(row), markersize=6, markerfacecolor=face)
