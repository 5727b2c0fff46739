"""The figures of an arena."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from routed_rl.runs.figures import GREYS, PALETTE, SMALL, over_seeds, spread, styled, subplots
from routed_rl.runs.tables import half_interval
from routed_rl.unlearning.benchmarks import Benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("ranks", "arrows", "compute")
COLOURS = {"none": PALETTE["vermillion"], "undo": PALETTE["indigo"], "distil": PALETTE["teal"]}
MARKERS = {"none": "o", "era": "s"}
NAMES = {"none": "method alone", "undo": "then UNDO", "distil": "then distilled into a new model"}


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


def _colour(row: Any) -> str:
    return GREYS[0] if pd.isna(row.method) else COLOURS[row.then]


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
            axes.plot(values.mean(), place, MARKERS[row.before], color=_colour(row), markersize=5)
            if len(values) > 2:
                half = half_interval(values)
                axes.plot([values.mean() - half, values.mean() + half], [place, place], color=_colour(row))
            elif len(values) == 2:
                axes.plot(values, [place, place], ".", color=_colour(row), markersize=3)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel(label)
    drawn[0].set_yticks(range(len(board)), [f"{name}{'' if of.kept else ' *'}" for name, of in board.iterrows()])
    drawn[0].invert_yaxis()
    lost = "" if board.kept.all() else " * utility lost."
    note = over_seeds(frame.groupby("name").seed.nunique())
    figure.suptitle(f"Ranks, the best at the top ({note}).{lost}", x=0.01, ha="left")
    _legend(figure, board)
    return figure


def _legend(figure: Figure, board: pd.DataFrame) -> None:
    from matplotlib.lines import Line2D

    there = [then for then in COLOURS if (board.then[board.method.notna()] == then).any()]
    lines = [Line2D([], [], color=COLOURS[then], marker="o", label=NAMES[then]) for then in there]
    if (board.before == "era").any():
        lines.append(Line2D([], [], color=GREYS[1], marker=MARKERS["era"], linestyle="", label="ERA beforehand"))
    if board.method.isna().any():
        lines.append(Line2D([], [], color=GREYS[0], marker="o", label="full and retrained model"))
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))


@styled()
def draw_arrows(board: pd.DataFrame, benchmark: Benchmark, utility: str) -> Figure:
    """Knowledge against utility, with an arrow from before to after the worst attack for each model.

    Knowledge is what exceeds that of the retrained model, where there is one: before the attack, and under the same
    attack.
    """
    is_excess = board["excess worst"].notna().any() and "retrained" in board.index
    before, after = board[benchmark.main], board["after worst"]
    if is_excess:
        before, after = (before - before["retrained"]).clip(lower=0), board["excess worst"]
    figure, axes = subplots(height=5.0)
    for name, row in board.iterrows():
        at, look = row[utility], {"color": _colour(row), "linewidth": 1.2}
        axes.annotate("", (at, after[name]), (at, before[name]), arrowprops={"arrowstyle": "-|>", **look})
        axes.plot(at, before[name], MARKERS[row.before], color=_colour(row), markersize=3)
    low, high = board[utility].min(), board[utility].max()
    room = max(0.1 * (high - low), 0.01)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel(f"{utility} before the attack")
    axes.set_ylabel(f"{benchmark.main} of the forget set" + ", above the retrained model's" * is_excess)
    named = zip(board.iterrows(), spread([*after], [0.035] * len(board)), strict=True)
    for (name, row), y in named:
        axes.annotate(
            name, (row[utility], after[name]), (1.02, y), textcoords="axes fraction", fontsize=SMALL, va="center",
            color=_colour(row), arrowprops={"arrowstyle": "-", "color": _colour(row), "linewidth": 0.4, "alpha": 0.5},
        )  # fmt: skip
    axes.set_title("Arrows: from before any attack to under the worst one (bottom right is best)", loc="left")
    _legend(figure, board)
    return figure


@styled()
def draw_compute(board: pd.DataFrame, benchmark: Benchmark) -> Figure:
    """Excess under the worst attack against compute."""
    figure, axes = subplots(height=4.5)
    shown = board[board.compute.notna() & board.method.notna() & board["excess worst"].notna()]
    for name, row in shown.iterrows():
        at = (100 * row.compute, row["excess worst"])
        axes.plot(*at, MARKERS[row.before], color=_colour(row), markersize=5, mfc=_colour(row) if row.kept else "white")
        axes.annotate(str(name), at, (4, 3), textcoords="offset points", fontsize=SMALL)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("compute (% of the retrained model's)")
    axes.set_ylabel(f"excess of {benchmark.main}, worst attack")
    axes.set_title("What robustness costs (bottom left is best; open: utility lost)", loc="left")
    _legend(figure, shown)
    return figure
