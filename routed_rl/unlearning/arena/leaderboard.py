"""The leaderboard of an arena: a row for each model, the best one first."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from routed_rl.options.arena import ArenaOptions
from routed_rl.runs.tables import aggregate, markdown, shown_mean
from routed_rl.unlearning.arena.entries import FULL, NONE, Arena
from routed_rl.unlearning.arena.trusting import shown_trust

WORST = "worst"
"""In the column ``attack``: the best that any attack brings back."""
ARROWS = {"low": "↓", "high": "↑", "zero": "→ 0", "half": "→ 0.5"}


def leaderboard(frame: pd.DataFrame, arena: Arena, keep: float) -> pd.DataFrame:
    """Return a row for each model, with means over seeds; the best one first.

    Models that keep their utility in every seed come before those that do not. Among them, the one whose worst attack
    brings back least comes first. The full and the retrained model come last.

    Returns:
        Columns: those of the model; a column for each score; ``after`` and ``excess`` with the name of each attack, for
        the main score after it; ``utility after worst``; ``robustness`` and ``compute``. Each mean has a column with
        the half of its interval.
    """

    def means(rows: pd.DataFrame, column: str = "value") -> pd.DataFrame:
        there = rows.dropna(subset=[column]) if column in rows else rows[:0].assign(**{column: []})  # no attack is done
        return aggregate(there, column, ["name"]).set_index("name")

    before = frame[frame.attack == NONE]
    columns = {name: means(before[before.score == name]) for name in arena.scores}
    for attack in frame.attack[frame.attack != NONE].unique():
        rows = frame[frame.attack == attack]
        columns |= {f"after {attack}": means(rows), f"excess {attack}": means(rows, "excess")}
    columns[f"utility after {WORST}"] = means(frame[frame.attack == WORST], "utility")
    columns["robustness"] = means(frame[frame.attack == WORST], "robustness")
    columns["compute"] = means(before[before.score == arena.main], "compute")
    about = frame.drop_duplicates("name").set_index("name")[["before", "method", "then", "alpha"]]
    parts = [about, frame.groupby("name").seed.nunique().rename("seeds")]
    for column, found in columns.items():
        parts += [found["mean"].rename(column), found["half"].rename(f"{column} ±")]
    board = pd.concat(parts, axis=1).reindex(about.index)
    expected = product(("after", "excess"), (*arena.attacks, WORST), ("", " ±"))
    for column in (f"{kind} {attack}{half}" for kind, attack, half in expected):
        if column not in board:
            board[column] = np.nan
    measured = before[before.score.isin([arena.main, arena.utility])]
    complete = measured.groupby("name").value.agg(lambda of: of.notna().all())
    board["kept"] = complete.reindex(board.index, fill_value=False) & (board.seeds == frame.seed.nunique())
    if arena.utility is not None and FULL in board.index:
        utility = before[before.score == arena.utility].pivot(index="name", columns="seed", values="value")
        whole = utility.reindex([FULL]).loc[FULL]  # not a number where it failed
        board["kept"] &= (utility >= keep * whole).all(axis=1).reindex(board.index, fill_value=False)
    board["compared"] = board.method.isna()
    by = ["compared", "kept", f"excess {WORST}", f"after {WORST}"]
    return board.sort_values(by, ascending=[True, False, True, True], kind="stable").drop(columns="compared")


def marked(board: pd.DataFrame) -> list[str]:
    """Return the models' names, each with what keeps it from being ranked with the others."""
    seeds = board.seeds.max()

    def why(row: Any) -> str:
        return "utility lost" if row.seeds == seeds else f"{row.seeds} of {seeds} seeds"

    return [str(name) if row.kept else f"{name} ({why(row)})" for name, row in board.iterrows()]


def shown(board: pd.DataFrame, column: str) -> list[str]:
    """Return the cells of a column of the leaderboard: means, and halves of intervals where there are any."""
    pairs = zip(board[column], board[f"{column} ±"], strict=True)
    return ["" if pd.isna(mean) else shown_mean({"mean": mean, "half": half}, 2) for mean, half in pairs]


def headed(arena: Arena) -> dict[str, str]:
    """Return the columns of the first table, with their heads. An arrow says which numbers are good."""
    main, utility = arena.main, arena.utility
    found = {main: of_score(arena, main), f"after {WORST}": "after the worst attack ↓", f"excess {WORST}": "excess ↓"}
    found |= {utility: of_score(arena, utility)} if utility is not None else {}
    return found | {"robustness": "robustness ↑", "compute": "compute ↓"}


def of_score(arena: Arena, name: str) -> str:
    """Return the head of a score's column."""
    return f"{name} {ARROWS[arena.scores[name].kind.best]}"


def latex(board: pd.DataFrame, arena: Arena) -> str:
    """Return the first table in LaTeX, with rules of the package booktabs."""
    signs = {
        "↓": r"$\downarrow$",
        "↑": r"$\uparrow$",
        "→": r"$\to$",
        "α": r"$\alpha$",
        "±": r"$\pm$",
        "%": r"\%",
        "_": r"\_",
        "&": r"\&",
        "#": r"\#",
    }

    def plain(text: str) -> str:
        return "".join(signs.get(character, character) for character in text)

    columns = headed(arena)
    rows = zip(marked(board), *(shown(board, column) for column in columns), strict=True)
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(map(plain, ["model", *columns.values()])) + r" \\",
        r"\midrule",
        *(" & ".join(map(plain, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def summary(frame: pd.DataFrame, board: pd.DataFrame, arena: Arena, options: ArenaOptions, trust: pd.DataFrame) -> str:
    """Return the leaderboard in Markdown."""
    main, names = arena.main, marked(board)

    def table(columns: Mapping[str, str]) -> str:
        cells = (shown(board, column) for column in columns)
        return markdown(["model", *columns.values()], [list(row) for row in zip(names, *cells, strict=True)])

    order = "The model with the smallest excess is first."
    if arena.utility is not None:
        order = f"Models that keep {options.keep:.0%} of the full model's utility come first, in all seeds. " + order
    narrow = sorted(set(frame.attack[(frame.get("inside") == False) & ~frame.attack.str.startswith(WORST)]))  # noqa: E712
    chances = {name: of.kind().chance(arena.benchmark) for name, of in arena.scores.items()}
    guesses = [f"{value:.2f} for `{name}`" for name, value in chances.items() if value is not None]
    seeds = frame.seed.nunique()
    over = "one seed" if seeds == 1 else f"means of {seeds} seeds, ± half of the 95 % interval over seeds"
    split = f", split `{options.split}`" if options.split else ""
    lines = [
        "# Leaderboard",
        f"Benchmark `{options.benchmark}`{split}: {len(arena.benchmark.forget)} forget and "
        f"{len(arena.benchmark.retain)} retain documents; {over}. `{main}` says how much of the forget set a model "
        f"knows. A model that guesses has {arena.benchmark.chance:.2f}.",
        f"Each of {len(arena.attacks)} attacks may spend {options.budget} gradient steps. *Excess* is how far an "
        f"attack brings `{main}` above that of the retrained model under the same attack, at the attempt and step "
        "where this is most. The worst attack is the one with the largest excess.",
        order,
        table(headed(arena)),
        "Robustness: 0 is as fragile as the same method alone, 1 as robust as the retrained model. Compute: 1 is that "
        "of the retrained model.",
        "## Attacks",
        f"Excess of `{main}` under each attack. Low is good.",
        table({f"excess {attack}": attack for attack in arena.attacks}),
        f"`{main}` after each attack, where its excess is largest.",
        table({f"after {attack}": attack for attack in arena.attacks}),
        *(
            [
                f"The best learning rate is the lowest or the highest of the sweep, in at least one model, for "
                f"{', '.join(narrow)}: with a wider sweep, these attacks may bring back more. `--learning-rates` "
                "replaces the sweep of attacks that fine-tune."
            ]
            if narrow
            else []
        ),
        "## Scores before any attack",
        table({name: of_score(arena, name) for name in arena.scores}),
        *([f"A model that guesses has {', '.join(guesses)}."] if guesses else []),
        *shown_trust(trust, main),
    ]
    return "\n\n".join(lines) + "\n"
