"""Results of an arena: the table, the leaderboard, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from routed_rl.options.arena import ArenaOptions
from routed_rl.runs import read_metrics
from routed_rl.runs.charts import Chart
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import tidy
from routed_rl.unlearning.arena.attacking import MAIN
from routed_rl.unlearning.arena.attacks import Group
from routed_rl.unlearning.arena.entries import FULL, NONE, RETRAINED, Arena, Entry
from routed_rl.unlearning.arena.figures import figures
from routed_rl.unlearning.arena.leaderboard import WORST, latex, leaderboard, summary
from routed_rl.unlearning.arena.trusting import trusted
from routed_rl.unlearning.attacks import robustness

KEYS = ("name", "before", "method", "then", "alpha", "seed", "attack", "score")
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
    "utility": "after an attack on the weights: what the model has kept where the attack brings back most",
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
    board = leaderboard(frame, arena, options.keep)
    trust = trusted(done, arena, root)
    words = summary(frame, board, arena, options, trust)
    curves = pd.DataFrame([row for entry in done for row in _looks(entry, arena, root)])
    charts = {}
    if len(curves):
        title = "What the attacks bring back: the best of all attempts within so many gradient steps"
        charts["attacks"] = lambda: Chart(title, "gradient steps of an attempt", arena.main, curves)
    drawn = figures(frame, board, arena.benchmark, arena.utility)
    files = {"leaderboard.csv": board.to_csv(lineterminator="\n"), "leaderboard.tex": latex(board, arena)}
    if len(trust):
        files["trust.csv"] = trust.to_csv(lineterminator="\n", index=False)
    return Findings(frame, timings, keys, words, drawn, MEANINGS, dict(failed), charts, files)


def _value(entry: Entry, score: str, root: Path) -> float | None:
    return (entry.scores[score].result(root) or {})["value"]


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
        shown |= {"utility": found["others"].get(arena.utility)}
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
