"""Results of a study of ``routed-rl undo``, read from its directory: finished or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from routed_rl.errors import user_input
from routed_rl.experiments.demo.stages import Run, read_stages
from routed_rl.runs import read_json
from routed_rl.runs.grid import STAGES
from routed_rl.runs.rundir import RESULT
from routed_rl.runs.studies import RESULTS
from routed_rl.unlearning.attacks import robustness, worst_case
from routed_rl.unlearning.undo_study.measuring import ATTACK, CURVES, METRICS
from routed_rl.unlearning.undo_study.members import model_name
from routed_rl.unlearning.undo_study.stages import TEACHERS

MADE = ("pretrain", "filtered", "suppress", "given", "distil")
"""Kinds of stages that make a model."""
TEACHER = ("seed", "suppressor", "strength", "labelled")
"""Columns that a student and its teacher share."""


@dataclass(frozen=True, eq=False)
class UndoResults:
    """What a study has found so far.

    Attributes:
        rows: a row per model and seed, with the columns of ``results.csv`` that the demo shows.
        steps: the attack steps after which models are measured, in order.
        unit: of the metric, for axes.
        higher_is_better: whether a larger number of the metric means that a model knows more.
        models: number of models that the study has begun to make.
        tabled: number of rows that are in the study's own table, which it writes at its end.
        stages, finished: number of stages that were started, and of those that are finished.
        runs: the stages, by key.
    """

    rows: pd.DataFrame
    steps: list[int]
    unit: str
    higher_is_better: bool
    models: int
    tabled: int
    stages: int
    finished: int
    runs: Mapping[str, Run]

    @property
    def measured(self) -> str:
        """What an attack brings back, for axes."""
        return f"forget {self.unit}"

    @property
    def is_done(self) -> bool:
        """Whether every stage that was started is finished, and the study has written the results of every model."""
        return self.finished == self.stages and self.tabled >= max(self.models, len(self.rows))


def read_undo(directory: Path) -> UndoResults:
    """Return the results of a study. Models that the table of results lacks are read from their finished stages.

    Raises:
        UserError: if a file of the study cannot be read.
    """
    with user_input():
        runs = read_stages(directory / STAGES)
        path = directory / RESULTS
        table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["name", "seed", "stage"])
        metric = _metric(runs)
        rows = pd.concat([table, pd.DataFrame(_missing(runs, table, metric))], ignore_index=True)
        for column in ("model", "suppressor", "strength", "labelled", "alpha", "comparable", "attack", "retain"):
            if column not in rows:
                rows[column] = None
        rows = rows.sort_values(["name", "seed"], ignore_index=True)
    steps = sorted(int(number) for name in rows if (number := name.removeprefix("forget_")).isdigit())
    found = METRICS.built_in.get(metric)
    finished = sum(run.finished for run in runs.values())
    made = sum(run.kind in MADE for run in runs.values())
    unit = "score" if found is None else found.unit
    better = found is None or found.higher_is_better
    return UndoResults(rows, steps, unit, better, made, len(table), len(runs), finished, runs)


def leaderboard(results: UndoResults, step: int, seeds: bool = False) -> pd.DataFrame:
    """Return the models within an attack step, the most robust first: a row per model, or per model and seed.

    Students whose robustness means little come after all others that have a robustness.

    Args:
        step: one of :attr:`UndoResults.steps`.
        seeds: a row per seed, in place of means over seeds.
    """
    rows = results.rows.assign(forget=results.rows[f"forget_{step}"], robustness=_robustness(results.rows, step))
    if seeds:
        board = rows[["name", "seed", "retain", "forget", "robustness", "comparable"]].copy()
    else:
        groups = rows.groupby("name", sort=False)
        board = groups[["retain", "forget", "robustness"]].mean().assign(seeds=groups.seed.nunique())
        board["comparable"] = groups.comparable.agg(_all_known)
        board = board.reset_index()[["name", "seeds", "retain", "forget", "robustness", "comparable"]]
    doubtful = board.comparable.map(lambda value: pd.notna(value) and not value)
    order = board.assign(doubtful=doubtful).sort_values(
        ["doubtful", "robustness", "name"], ascending=[True, False, True], na_position="last", kind="stable"
    )
    none = order.robustness.isna()
    return pd.concat([order[~none], order[none]]).drop(columns="doubtful").reset_index(drop=True)


def _robustness(rows: pd.DataFrame, step: int) -> list[float]:
    """Return the robustness of each row within an attack step; NaN without a teacher or a filtered model."""
    column = f"forget_{step}"
    teachers = {_teacher_key(row): row[column] for row in rows[rows.model == "suppressed"].to_dict("records")}
    filtered = rows[(rows.model == "filtered") & rows.labelled.isna()].set_index("seed")[column]
    return [
        robustness(row[column], teachers[_teacher_key(row)], filtered[row["seed"]])
        if pd.notna(row["suppressor"]) and _teacher_key(row) in teachers and row["seed"] in filtered
        else np.nan
        for row in rows.to_dict("records")
    ]


def _teacher_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(row[name]) else row[name] for name in TEACHER)


def _all_known(values: pd.Series) -> Any:
    """False if one value is false, None if one is not known, else True."""
    if (values.dropna() == False).any():  # noqa: E712
        return False
    return None if values.isna().any() else True


def _metric(runs: Mapping[str, Run]) -> str:
    """Return the metric of the study's tables: that which stops students, or the only one."""
    stops = [run.options["stops"]["metric"] for run in runs.values() if run.options.get("stops")]
    measured = [name for run in runs.values() for name in run.options.get("measured", {})]
    return next(iter([*stops, *measured]), "")


def _missing(runs: Mapping[str, Run], table: pd.DataFrame, metric: str) -> list[dict[str, Any]]:
    """Return rows of models with a finished attack that are not in the table yet.

    Models of another command in the same directory are left out, where their parents are not in the table or another
    model has their name and seed.
    """
    if metric not in METRICS.built_in:  # of a class of the user's own, nobody knows here which numbers are better
        return []
    curves = {
        run.parents["model"]: run
        for run in runs.values()
        if run.finished and run.kind in (CURVES, ATTACK) and metric in run.options.get("measured", {})
    }
    stages, taken = {*table.stage}, {*zip(table.name, table.seed, strict=True)}
    rows = []
    for key, run in runs.items():
        if run.kind not in MADE or run.path.name in stages:
            continue
        parents = [runs[of].path.name for of in run.parents.values() if of in runs and runs[of].kind in MADE]
        keys = _keys(run, runs)
        name = model_name(**keys)
        if not {*parents} <= stages or (name, run.seed) in taken:
            continue
        stages.add(run.path.name)
        taken.add((name, run.seed))
        if key in curves:
            rows.append({"name": name, **keys, "seed": run.seed, "stage": run.path.name, **_curve(curves[key], metric)})
    return rows


def _curve(run: Run, metric: str) -> dict[str, Any]:
    """Return the columns of an attack: its worst case, and the retain performance before it."""
    found = {_rate(setting): curve for setting, curve in read_json(run.path / RESULT)["curves"][metric].items()}
    case = worst_case(found, METRICS.built_in[metric].higher_is_better)
    row = {f"forget_{step}": value for step, value in zip(case.steps, case.forget, strict=True)}
    attack = run.parents.get("attack", run.key)
    retain = next(iter(found.values()))[0].get("retain")
    return {**row, "retain": retain, "attack": f"{ATTACK}-{attack}", "worst_learning_rate": case.learning_rate[-1]}


def _rate(setting: str) -> Any:
    try:
        return float(setting)
    except ValueError:
        return setting


def _keys(run: Run, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Return what distinguishes a model from the others of the study, as :func:`model_name` takes it."""
    if run.kind == "pretrain":
        share = run.options["left_out"]
        labelled = None if share in (0, 1) else share
        return {"model": "filtered" if share else "reference", "labelled": labelled}
    if run.kind == "filtered":
        return {"model": "filtered"}
    if run.kind in TEACHERS:
        method = str(run.options.get("method", "given")).rpartition(":")[2]
        found = {"model": "suppressed", "suppressor": method, "labelled": run.options.get("labelled")}
        return {**found, "strength": None if run.kind == "given" else run.options.get("strength", 1.0)}
    teacher, student = runs[run.parents["teacher"]], run.options["student"]
    if teacher.kind not in TEACHERS:
        return {"model": f"matched, {student}"}
    noise = {name: run.options[name] for name in ("alpha", "beta") if name in run.options}
    return {**_keys(teacher, runs), "model": "undo" if student == "noised" else "distilled", **noise}
