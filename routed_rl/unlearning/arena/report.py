"""Results of an arena: the table, the leaderboard, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from routed_rl.options.arena import ArenaOptions
from routed_rl.runs import read_metrics
from routed_rl.runs.charts import Chart
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import aggregate, markdown, shown_mean, tidy
from routed_rl.unlearning.arena.attacking import MAIN
from routed_rl.unlearning.arena.attacks import Group
from routed_rl.unlearning.arena.entries import FULL, NONE, RETRAINED, Arena, Entry
from routed_rl.unlearning.arena.figures import figures
from routed_rl.unlearning.arena.trusting import shown_trust, trusted
from routed_rl.unlearning.attacks import robustness

KEYS = ("name", "before", "method", "then", "alpha", "seed", "attack", "score")
WORST = "worst"
"""In the column ``attack``: the best that any attack brings back."""
ARROWS = {"low": "↓", "high": "↑", "zero": "→ 0", "half": "→ 0.5"}
UTILITY = ("model-utility", "retained-knowledge", "retained-knowledge-memorisation", "retained-multiple-choice", "mmlu")
"""Scores that say what a model has kept. The first one that is measured counts."""
MEANINGS = {
    "name": "the model",
    "before": "what the model was before the method: none or era (routed and ablated)",
    "method": "unlearning method; none: nothing but what was before; empty for the full and the retrained model",
    "then": "what followed the method: none, undo or distil",
    "alpha": "noise level of UNDO",
    "seed": "seed of the model",
    "attack": "none: before any attack; worst: the attack with the largest excess; worst of weights, of prompts: the "
    "same among the attacks that change weights, or only prompts",
    "score": "what is measured",
    "value": "the score",
    "low": "lower end of its 95 % interval over examples (bootstrap)",
    "high": "upper end of its 95 % interval over examples (bootstrap)",
    "excess": "the most by which the score exceeds that of the retrained model after the same attempt and steps; 0: "
    "the attack teaches this model no more than the retrained one",
    "attempt": "setting of the attempt with the largest excess",
    "step": "gradient steps after which it is largest; value is the score then",
    "half": "smallest number of gradient steps after which the score is halfway from chance to the full model's; "
    "empty: it never is",
    "inside": "whether the best learning rate of the attack's sweep is neither its lowest nor its highest",
    "diverged": "learning rates of the sweep at which the attack diverged",
    "attack_cost": "cost of the attack, in gradient steps; a forward pass counts a third",
    "steps": "gradient steps of the last stage that made the model",
    "cost": "rows on which all stages after the full model train; rows that are only read count a third",
    "compute": "cost, divided by that of the retrained model",
    "robustness": "0: as fragile as the same method alone; 1: as robust as the retrained model; under the worst attack",
}


def find(
    options: ArenaOptions, arena: Arena, entries: Sequence[Entry], root: Path, failed: Mapping[Path, str]
) -> Findings | None:
    """Return the results of all models whose main score is measured. None: there is no such model.

    What else is missing, because it failed, is left out: a score is blank, and so is the worst of attacks that are not
    all there.
    """
    done = [entry for entry in entries if entry.scores[arena.main].result(root) is not None]
    if not done:
        return None
    taught = {entry.seed: _taught(entry, root) for entry in done if entry.stage.kind == RETRAINED}
    full = {entry.seed: _value(entry, arena.main, root) for entry in done if entry.stage.kind == FULL}
    halves = {seed: None if value is None else (value + arena.benchmark.chance) / 2 for seed, value in full.items()}
    rows = [row for entry in done for row in _rows(entry, arena, root, taught.get(entry.seed), halves.get(entry.seed))]
    frame = tidy(_compared(rows), KEYS)
    keys = (*KEYS, "part")
    timings = tidy([row for entry in done for row in _timings(entry, root)], keys)
    utility = utility_of(arena)
    board = leaderboard(frame, arena, utility, options.keep)
    trust = trusted(done, arena, root)
    words = summary(frame, board, arena, utility, options, trust)
    curves = pd.DataFrame([row for entry in done for row in _looks(entry, arena, root)])
    charts = {}
    if len(curves):
        title = "What the attacks bring back: the best of all attempts within so many gradient steps"
        charts["attacks"] = lambda: Chart(title, "gradient steps of an attempt", arena.main, curves)
    drawn = figures(frame, board, arena.benchmark, utility)
    files = {"leaderboard.csv": board.to_csv(lineterminator="\n"), "leaderboard.tex": latex(board, arena, utility)}
    if len(trust):
        files["trust.csv"] = trust.to_csv(lineterminator="\n", index=False)
    return Findings(frame, timings, keys, words, drawn, MEANINGS, dict(failed), charts, files)


def _value(entry: Entry, score: str, root: Path) -> float | None:
    return (entry.scores[score].result(root) or {})["value"]


def utility_of(arena: Arena) -> str | None:
    """Return the name of the score that says what a model has kept. None: none is measured."""
    return next((name for name in UTILITY if name in arena.scores), None)


Taught = Mapping[tuple[str, Any], Mapping[float, float]]
"""The main score of the retrained model, by attack and attempt, and by step: the highest where there are several."""


def _taught(entry: Entry, root: Path) -> Taught:
    found: dict[tuple[str, Any], dict[float, float]] = {}
    for name, stage in entry.attacks.items():
        for look in (stage.result(root) or {}).get("looks", ()):
            if look[MAIN] is not None:
                of = found.setdefault((name, look["attempt"]), {})
                of[look["step"]] = max(look[MAIN], of.get(look["step"], look[MAIN]))
    return found


def _worst_look(name: str, looks: Sequence[Mapping[str, Any]], taught: Taught | None) -> dict[str, Any]:
    """Return the look with the largest excess, or where there is no retrained model the one with the highest score.

    A look is compared with the retrained model's at the same step of the same attempt. Where that attempt had diverged
    by then, its last look counts.
    """
    worst: dict[str, Any] = {"value": None, "attempt": None, "step": None, "excess": None}
    for look in looks:
        if look[MAIN] is None:
            continue
        excess = None
        if taught is not None:
            of = taught.get((name, look["attempt"]), {})
            before = [step for step in of if step <= look["step"]]
            excess = max(look[MAIN] - of[max(before)], 0.0) if before else None
        found = {"value": look[MAIN], "attempt": look["attempt"], "step": look["step"], "excess": excess}
        if worst["value"] is None or _rank(found) > _rank(worst):
            worst = found
    return worst


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    """What makes one attack, or look, worse than another: the excess, and then the score."""
    return (row["excess"] or 0.0, row["value"])


def _rows(entry: Entry, arena: Arena, root: Path, taught: Taught | None, half: float | None) -> list[dict[str, Any]]:
    """A row for each score of a model, and one for each attack on it.

    Args:
        half: the main score at which half of the full model's knowledge is back. None: unknown.
    """
    keys = {name: getattr(entry, name) for name in ("name", "before", "method", "then", "alpha", "seed")}
    keys |= _cost(entry, root)
    rows: list[dict[str, Any]] = []
    for name, stage in entry.scores.items():
        found = stage.result(root)
        if found is None:
            continue
        measured = {part: found[part] for part in ("value", "low", "high")}
        rows.append({**keys, "attack": NONE, "score": name, **measured})
    attacked = []
    for name, stage in entry.attacks.items():
        found = stage.result(root)
        if found is None:
            continue
        looks = [look for look in found["looks"] if look[MAIN] is not None]
        back = [look["step"] for look in looks if half is not None and look[MAIN] >= half]
        shown = {**_worst_look(name, looks, taught), "half": min(back, default=None), "attack_cost": found["cost"]}
        shown |= {"inside": found["inside"], "diverged": " ".join(map(str, found["diverged"])) or None}
        attacked.append({**keys, "attack": name, "score": arena.main, **shown})
    groups = {WORST: None, **{f"{WORST} of {group}": group for group in get_args(Group)}}
    for worst, group in groups.items():
        kinds = {
            name: of.kind for name, of in arena.attacks.items() if of.kind.ranked and group in (None, of.kind.group)
        }
        there = [row for row in attacked if row["attack"] in kinds]
        finite = [row for row in there if row["value"] is not None]
        if len(there) < len(kinds) or not finite:
            continue
        halves = [row["half"] for row in finite if row["half"] is not None]
        total = {"half": min(halves, default=None), "attack_cost": sum(row["attack_cost"] for row in finite)}
        rows.append({**max(finite, key=lambda row: _rank(dict(row))), "attack": worst, **total})
    return rows + attacked


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
    alone = {_same(row): row["excess"] for row in rows if row["attack"] == WORST and row["then"] == NONE}
    whole = {row["seed"]: row["cost"] for row in rows if row["name"] == RETRAINED}
    compared = []
    for row in rows:
        of: dict[str, Any] = {"compute": None, "robustness": None}
        if row["method"] is not None and whole.get(row["seed"]) and row["cost"] is not None:
            of["compute"] = row["cost"] / whole[row["seed"]]
        weakest = alone.get(_same(row))
        if row["attack"] == WORST and row["then"] != NONE and None not in (row["excess"], weakest):
            of["robustness"] = robustness(row["excess"], weakest, 0.0)  # type: ignore[arg-type]
        compared.append({**row, **of})
    return compared


def _same(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a model has in common with the same method alone."""
    return row["before"], row["method"], row["seed"]


def _looks(entry: Entry, arena: Arena, root: Path) -> list[dict[str, Any]]:
    """Points of a chart: the best that the attacks on weights have brought back within so many steps."""
    looks: list[tuple[float, float]] = []
    for name, stage in entry.attacks.items():
        found = stage.result(root)
        if found is not None and arena.attacks[name].kind.group == "weights":
            looks += [(look["step"], look[MAIN]) for look in found["looks"] if look[MAIN] is not None]
    best, points = -np.inf, []
    for step, main in sorted(looks):
        best = max(best, main)
        points.append({"series": entry.name, "x": step, "y": best, "seed": entry.seed})
    return list({point["x"]: point for point in points}.values())


def _timings(entry: Entry, root: Path) -> list[dict[str, Any]]:
    keys = {"name": entry.name, "seed": entry.seed}
    rows = []
    changed = {f"{change} {score}": of for change, scores in entry.changed.items() for score, of in scores.items()}
    for part, stage in {entry.stage.kind: entry.stage, **entry.scores, **entry.attacks, **changed}.items():
        if stage.result(root) is None:
            continue
        seconds = sum(float(row["seconds"]) for row in read_metrics(stage.path(root) / "timings.csv"))
        rows.append({**keys, "part": part, "seconds": seconds})
    return rows


def leaderboard(frame: pd.DataFrame, arena: Arena, utility: str | None, keep: float) -> pd.DataFrame:
    """Return a row for each model, with means over seeds; the best one first.

    Models that keep their utility come before those that do not. Among them, the one whose worst attack brings back
    least comes first. The full and the retrained model come last.

    Returns:
        Columns: those of the model; a column for each score; ``after`` and ``excess`` with the name of each attack, for
        the main score after it; ``robustness`` and ``compute``. Each mean has a column with the half of its interval.
    """

    def means(rows: pd.DataFrame, column: str = "value") -> pd.DataFrame:
        return aggregate(rows.dropna(subset=[column]), column, ["name"]).set_index("name")

    before = frame[frame.attack == NONE]
    columns = {name: means(before[before.score == name]) for name in arena.scores}
    for attack in frame.attack[frame.attack != NONE].unique():
        rows = frame[frame.attack == attack]
        columns |= {f"after {attack}": means(rows), f"excess {attack}": means(rows, "excess")}
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
    measured = before[before.score.isin([arena.main, utility])].groupby("name").value.agg(lambda of: of.notna().all())
    board["kept"] = measured.reindex(board.index, fill_value=False) & (board.seeds == frame.seed.nunique())
    if utility is not None and FULL in board.index:
        board["kept"] &= board[utility] >= keep * board.loc[FULL, utility]
    board["compared"] = board.method.isna()
    by = ["compared", "kept", f"excess {WORST}", f"after {WORST}"]
    return board.sort_values(by, ascending=[True, False, True, True], kind="stable").drop(columns="compared")


def marked(name: str, row: Any, seeds: int) -> str:
    """Return a model's name, with what keeps it from being ranked with the others."""
    return name if row.kept else f"{name} ({'utility lost' if row.seeds == seeds else f'{row.seeds} of {seeds} seeds'})"


def shown(board: pd.DataFrame, column: str) -> list[str]:
    """Return the cells of a column of the leaderboard: means, and halves of intervals where there are any."""
    pairs = zip(board[column], board[f"{column} ±"], strict=True)
    return ["" if pd.isna(mean) else shown_mean({"mean": mean, "half": half}, 2) for mean, half in pairs]


def headed(arena: Arena, utility: str | None) -> dict[str, str]:
    """Return the columns of the first table, with their heads. An arrow says which numbers are good."""
    main = arena.main
    found = {main: of_score(arena, main), f"after {WORST}": "after the worst attack ↓", f"excess {WORST}": "excess ↓"}
    found |= {utility: of_score(arena, utility)} if utility is not None else {}
    return found | {"robustness": "robustness ↑", "compute": "compute ↓"}


def of_score(arena: Arena, name: str) -> str:
    """Return the head of a score's column."""
    return f"{name} {ARROWS[arena.scores[name].kind.best]}"


def latex(board: pd.DataFrame, arena: Arena, utility: str | None) -> str:
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

    columns = headed(arena, utility)
    rows = [[str(name), *cells] for name, *cells in zip(board.index, *(shown(board, c) for c in columns), strict=True)]
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


def summary(
    frame: pd.DataFrame,
    board: pd.DataFrame,
    arena: Arena,
    utility: str | None,
    options: ArenaOptions,
    trust: pd.DataFrame,
) -> str:
    """Return the leaderboard in Markdown."""
    main = arena.main

    names = [marked(str(name), row, frame.seed.nunique()) for name, row in board.iterrows()]

    def table(columns: Mapping[str, str]) -> str:
        cells = (shown(board, column) for column in columns)
        return markdown(["model", *columns.values()], [list(row) for row in zip(names, *cells, strict=True)])

    order = "The model with the smallest excess is first."
    if utility is not None:
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
        table(headed(arena, utility)),
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
