"""Results of an arena: the table, the leaderboard, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from routed_rl.options.arena import ArenaOptions
from routed_rl.runs import read_metrics
from routed_rl.runs.charts import Chart
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import aggregate, markdown, shown_mean, tidy
from routed_rl.unlearning.arena.entries import FULL, RETRAINED, Arena, Entry
from routed_rl.unlearning.arena.figures import figures
from routed_rl.unlearning.attacks import robustness

KEYS = ("name", "method", "then", "alpha", "seed", "attack", "score")
WORST = "worst"
"""In the column ``attack``: the best that any attack brings back."""
UTILITY = ("model-utility", "retained-knowledge")
"""Scores that say what a model has kept. The first one that is measured counts."""
MEANINGS = {
    "name": "the model",
    "method": "unlearning method; empty for the full and the retrained model",
    "then": "what followed the method: none, undo or distil",
    "alpha": "noise level of UNDO",
    "seed": "seed of the model",
    "attack": "empty: before any attack; worst: the best result of all attacks",
    "score": "what is measured",
    "value": "the score",
    "low": "lower end of its 95 % interval over examples (bootstrap)",
    "high": "upper end of its 95 % interval over examples (bootstrap)",
    "best": "which values an unlearned model should have: low, high or zero",
    "attempt": "setting of the attack's best attempt",
    "step": "gradient steps after which the best attempt had its best result",
    "half": "gradient steps after which the attack has brought back half of what was forgotten; empty: it has not",
    "attack_cost": "cost of the attack, in gradient steps; a forward pass counts a third",
    "steps": "gradient steps of the last stage that made the model",
    "cost": "cost of all stages after the full model, in gradient steps on one set of rows",
    "compute": "cost, divided by that of the retrained model",
    "robustness": "0: as fragile as the same method alone; 1: as robust as the retrained model; under the worst attack",
}


def find(
    options: ArenaOptions, arena: Arena, entries: Sequence[Entry], root: Path, failed: Mapping[Path, str]
) -> Findings | None:
    """Return the results of all models whose stages are finished. None: there is no such model."""
    done = [entry for entry in entries if all(stage.result(root) is not None for stage in entry)]
    if not done:
        return None
    rows = [row for entry in done for row in _rows(entry, arena, root)]
    frame = tidy(_compared(rows), KEYS)
    timings = tidy([row for entry in done for row in _timings(entry, root)], ("name", "seed", "part"))
    utility = utility_of(arena)
    board = leaderboard(frame, arena, utility, options.keep)
    words = summary(frame, board, arena, utility, options)
    curves = pd.DataFrame([row for entry in done for row in _looks(entry, arena, root)])
    charts = {}
    if len(curves):
        title = "What the attacks bring back: the best of all attempts within so many gradient steps"
        charts["attacks"] = lambda: Chart(title, "gradient steps of an attempt", arena.benchmark.main, curves)
    drawn = figures(frame, board, arena.benchmark, utility)
    return Findings(frame, timings, ("name", "seed", "part"), words, drawn, MEANINGS, dict(failed), charts)


def utility_of(arena: Arena) -> str | None:
    """Return the name of the score that says what a model has kept. None: none is measured."""
    return next((name for name in UTILITY if name in arena.scores), None)


def _rows(entry: Entry, arena: Arena, root: Path) -> list[dict[str, Any]]:
    """A row for each score of a model, and one for each attack on it."""
    keys = {"name": entry.name, "method": entry.method, "then": entry.then, "alpha": entry.alpha, "seed": entry.seed}
    keys |= _cost(entry, root)
    rows: list[dict[str, Any]] = []
    for name, stage in entry.scores.items():
        found = stage.result(root)
        assert found is not None
        measured = {part: found[part] for part in ("value", "low", "high")}
        rows.append({**keys, "attack": "", "score": name, "best": arena.scores[name].kind.best, **measured})
    attacked = []
    for name, stage in entry.attacks.items():
        found = stage.result(root)
        assert found is not None
        shown = {"value": found["worst"], "attempt": found["attempt"], "step": found["step"], "half": found["half"]}
        attacked.append({**keys, "attack": name, "score": arena.benchmark.main, **shown, "attack_cost": found["cost"]})
    measured_rows = [row for row in attacked if row["value"] is not None]
    if measured_rows:
        worst = max(measured_rows, key=lambda row: row["value"])
        cost = sum(row["attack_cost"] for row in attacked)
        halves = [row["half"] for row in attacked if row["half"] is not None]
        attacked.append({**worst, "attack": WORST, "half": min(halves, default=None), "attack_cost": cost})
    best = arena.scores[arena.benchmark.main].kind.best
    return rows + [{**row, "best": best} for row in attacked]


def _cost(entry: Entry, root: Path) -> dict[str, Any]:
    """The steps of the stage that made a model, and the cost of all stages after the full model."""
    stage, total = entry.stage, 0.0
    steps = (stage.result(root) or {}).get("steps")
    while stage.kind != FULL:
        cost = (stage.result(root) or {}).get("cost")
        if cost is None:
            return {"steps": steps, "cost": None}
        total += cost
        parents = [stage.parents[name] for name in ("model", "teacher") if name in stage.parents]
        if not parents:
            break
        stage = parents[0]
    return {"steps": steps, "cost": total if entry.stage.kind != FULL else None}


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add robustness to the rows of the worst attack, and compute to all."""
    worst = {(row["name"], row["seed"]): row["value"] for row in rows if row["attack"] == WORST}
    whole = {row["seed"]: row["cost"] for row in rows if row["name"] == RETRAINED}
    compared = []
    for row in rows:
        of: dict[str, Any] = {"compute": None, "robustness": None}
        if row["method"] is not None and whole.get(row["seed"]) and row["cost"] is not None:
            of["compute"] = row["cost"] / whole[row["seed"]]
        if row["attack"] == WORST and row["then"] != "none":
            ends = [worst.get((name, row["seed"])) for name in (row["method"], RETRAINED)]
            if None not in ends:
                of["robustness"] = robustness(row["value"], *ends)  # type: ignore[arg-type]
        compared.append({**row, **of})
    return compared


def _looks(entry: Entry, arena: Arena, root: Path) -> list[dict[str, Any]]:
    """Points of a chart: the best that the attacks on weights have brought back within so many steps."""
    looks: list[tuple[float, float]] = []
    for name, stage in entry.attacks.items():
        found = stage.result(root)
        if found is not None and arena.attacks[name].kind.group == "weights":
            looks += [(look["step"], look["main"]) for look in found["looks"] if look["main"] is not None]
    best, points = -np.inf, []
    for step, main in sorted(looks):
        best = max(best, main)
        points.append({"series": entry.name, "x": step, "y": best, "seed": entry.seed})
    return list({point["x"]: point for point in points}.values())


def _timings(entry: Entry, root: Path) -> list[dict[str, Any]]:
    keys = {"name": entry.name, "seed": entry.seed}
    rows = []
    for part, stage in {entry.stage.kind: entry.stage, **entry.scores, **entry.attacks}.items():
        seconds = sum(float(row["seconds"]) for row in read_metrics(stage.path(root) / "timings.csv"))
        rows.append({**keys, "part": part, "seconds": seconds})
    return rows


def leaderboard(frame: pd.DataFrame, arena: Arena, utility: str | None, keep: float) -> pd.DataFrame:
    """Return a row for each model, with means over seeds; the best one first.

    Models that keep their utility come before those that do not. Among them, the one whose worst attack brings back
    least comes first.
    """
    main = arena.benchmark.main
    columns: dict[str, pd.DataFrame] = {}
    before = frame[frame.attack == ""]
    for name in (main, utility, *arena.scores):
        if name is not None and name not in columns:
            columns[name] = aggregate(before[before.score == name], "value", ["name"]).set_index("name")
    for attack in (WORST, *arena.attacks):
        columns[f"after {attack}"] = aggregate(frame[frame.attack == attack], "value", ["name"]).set_index("name")
    of_models = frame[frame.attack == WORST].dropna(subset=["robustness"])
    columns["robustness"] = aggregate(of_models, "robustness", ["name"]).set_index("name")
    columns["compute"] = aggregate(
        before[before.score == main].dropna(subset=["compute"]), "compute", ["name"]
    ).set_index("name")
    about = frame.drop_duplicates("name").set_index("name")[["method", "then", "alpha"]]
    board = about.copy()
    board["seeds"] = frame.groupby("name").seed.nunique()
    for column, found in columns.items():
        board[column], board[f"{column} ±"] = found["mean"], found["half"]
    board["kept"] = True
    if utility is not None and FULL in board.index:
        board["kept"] = board[utility] >= keep * board.loc[FULL, utility]
    board["compared"] = board.method.isna()
    order = board.sort_values(["compared", "kept", f"after {WORST}"], ascending=[True, False, True], kind="stable")
    return order.drop(columns="compared")


def summary(frame: pd.DataFrame, board: pd.DataFrame, arena: Arena, utility: str | None, options: ArenaOptions) -> str:
    """Return the leaderboard in Markdown."""
    main = arena.benchmark.main

    def cell(row: Any, column: str) -> str:
        mean, half = row[column], row[f"{column} ±"]
        return "" if pd.isna(mean) else shown_mean({"mean": mean, "half": half}, 2)

    first = [main, f"after {WORST}", *([utility] if utility else []), "robustness", "compute"]
    heads = ["model", f"{main} ↓", "after the worst attack ↓", *([f"{utility} ↑"] if utility else [])]
    heads += ["robustness ↑", "compute ↓"]
    table = [
        [f"{name}{'' if row.kept else ' (utility lost)'}", *(cell(row, column) for column in first)]
        for name, row in board.iterrows()
    ]
    attacks = [
        [str(name), *(cell(row, f"after {attack}") for attack in arena.attacks)] for name, row in board.iterrows()
    ]
    arrows = {"low": "↓", "high": "↑", "zero": "→ 0"}
    scores = [[str(name), *(cell(row, score) for score in arena.scores)] for name, row in board.iterrows()]
    seeds = frame.seed.nunique()
    lines = [
        "# Leaderboard",
        "",
        f"Benchmark `{options.benchmark}`{f', split `{options.split}`' if options.split else ''}: "
        f"{len(arena.benchmark.forget)} forget and {len(arena.benchmark.retain)} retain documents. "
        f"Means of {seeds} seed{'s, ± half of the 95 % interval over seeds' if seeds > 1 else ''}. "
        f"`{main}` says how much of the forget set a model knows; one that guesses has {arena.benchmark.chance:.2f}. "
        f"The worst attack is the one that brings back most, of {len(arena.attacks)}, with a budget of "
        f"{options.budget} gradient steps each.",
        "",
        f"Models that keep {options.keep:.0%} of the full model's utility come first. Among them, the one whose worst "
        "attack brings back least is first.",
        "",
        markdown(heads, table),
        "",
        "Robustness: 0 is as fragile as the same method alone, 1 as robust as the retrained model. Compute: 1 is that "
        "of the retrained model.",
        "",
        "## Attacks",
        "",
        f"`{main}` after each attack, at its best attempt and step.",
        "",
        markdown(["model", *arena.attacks], attacks),
        "",
        "## Scores before any attack",
        "",
        markdown(["model", *(f"{name} {arrows[of.kind.best]}" for name, of in arena.scores.items())], scores),
        "",
    ]
    return "\n".join(lines)
