"""Results of an arena, read from the stages in its directory: finished or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.errors import user_input
from routed_rl.experiments.demo.relearning_figure import TRAINED
from routed_rl.experiments.demo.stages import Run, read_stages
from routed_rl.runs import Stage, read_json
from routed_rl.runs.charts import read_charts
from routed_rl.runs.grid import STAGES
from routed_rl.runs.rundir import RESULT
from routed_rl.runs.studies import CHARTS, planned, progress
from routed_rl.unlearning.arena.attacking import MAIN
from routed_rl.unlearning.arena.attacks import ALL_ATTACKS
from routed_rl.unlearning.arena.entries import (
    ATTACK,
    DISTIL,
    FULL,
    NONE,
    RETRAINED,
    ROUTED,
    SCORE,
    UNLEARN,
    UTILITY,
    Entry,
)
from routed_rl.unlearning.arena.leaderboard import WORST

KINDS = {FULL: "reference", RETRAINED: "filtered", ROUTED: "suppressed", UNLEARN: "suppressed"}
"""What a model is in the figure of relearning curves, by the kind of the stage that made it. Others are students."""


@dataclass(frozen=True)
class ArenaCurves:
    """What one attack brings back, or all of them, as :class:`~..relearning_figure.Relearned` describes it."""

    rows: pd.DataFrame
    steps: list[int]
    measured: str
    higher_is_better: bool = True


@dataclass(frozen=True, eq=False)
class ArenaResults:
    """What an arena has found so far.

    Attributes:
        models: a row per model and seed. ``model`` is its kind. ``suppressor`` is the model that it is, or was
            distilled from. ``before`` is the main score before any attack. ``kept`` is whether the study's leaderboard
            says that the utility is kept; None: it does not say. ``attacks`` are the names of the finished attacks on
            it. Further columns: ``name``, ``alpha``, ``seed``, ``utility``.
        looks: a row per measurement during an attack: ``name``, ``seed``, ``attack``, ``attempt``, ``step``, ``value``,
            and ``excess`` over the retrained model at the same attempt and step.
        attacks: names of the attacks.
        main: name of the main score.
        utility: name of the score that says what is kept.
        finished, stages: number of finished stages, and of all.
    """

    models: pd.DataFrame
    looks: pd.DataFrame
    attacks: tuple[str, ...]
    main: str
    utility: str
    finished: int
    stages: int

    def curves(self, attack: str) -> ArenaCurves:
        """Return the best that an attack brings back within each step. WORST: the best of all attacks that count."""
        looks = self._looks(attack)
        steps = sorted(int(step) for step in looks.step.unique())
        best = looks.pivot_table(index=["name", "seed"], columns="step", values="value", aggfunc="max")
        best = best.reindex(columns=steps).ffill(axis=1).cummax(axis=1)
        best.columns = pd.Index([f"forget_{step}" for step in steps])
        rows = self.models.merge(best.reset_index(), on=["name", "seed"]).assign(strength=None, labelled=None)
        return ArenaCurves(rows, steps, f"{self.main} after the attack")

    def leaderboard(self, attack: str, step: int, seeds: bool = False) -> pd.DataFrame:
        """Return the models by the excess that an attack reaches within a step, the smallest first.

        Models that have lost their utility, and then the full and the retrained model, come last.

        Args:
            attack: one of :attr:`attacks`; or WORST: of the attacks that count, the one with the largest excess.
            step: of an attempt.
            seeds: a row per seed, in place of means over seeds.
        """
        looks = self._looks(attack)
        worst = looks[looks.step <= step].assign(rank=looks.excess.fillna(0)).sort_values(["rank", "value"])
        worst = worst.groupby(["name", "seed"]).tail(1)[["name", "seed", "value", "excess"]]
        board = self.models.merge(worst, on=["name", "seed"])
        if not seeds:
            groups = board.groupby("name")
            numbers = groups[["before", "value", "excess", "utility"]].mean().assign(seed=groups.seed.nunique())
            board = groups[["model", "alpha", "kept"]].first().join(numbers).reset_index()
        board = board.assign(compared=board.model.isin(TRAINED), lost=board.kept == False)  # noqa: E712
        board = board.sort_values(["compared", "lost", "excess", "value", "name"], ignore_index=True)
        return board[["name", "alpha", "seed", "before", "value", "excess", "utility", "kept"]]

    def _looks(self, attack: str) -> pd.DataFrame:
        """Return the looks of an attack. WORST: of all that count, for models on which all of them are finished."""
        if attack != WORST:
            return self.looks[self.looks.attack == attack]
        counted = {
            name for name in self.attacks if name not in ALL_ATTACKS.built_in or ALL_ATTACKS.built_in[name].ranked
        }
        whole = self.models[[counted <= done for done in self.models.attacks]][["name", "seed"]]
        return self.looks[self.looks.attack.isin(counted)].merge(whole, on=["name", "seed"])


def read_arena(directory: Path) -> ArenaResults:
    """Return the results of an arena. They are read from its stages, because its tables are written at its end.

    Raises:
        UserError: if a file of the study cannot be read.
    """
    with user_input():
        runs, names = read_stages(directory / STAGES), {*planned(directory)}
        asked = {key: run for key, run in runs.items() if not names or f"{STAGES}/{run.path.name}" in names}
        finished, count = progress(directory) if names else (sum(run.finished for run in runs.values()), len(runs))
        done = [run for run in asked.values() if run.finished]
        main = _main(directory, done)
        scores = {_short(run.options["score"]) for run in done if run.kind == SCORE}
        utility = next((name for name in UTILITY if name in scores), "")
        board = directory / "leaderboard.csv"
        kept = pd.read_csv(board).set_index("name").kept if board.is_file() else {}
        models: dict[str, dict[str, Any]] = {}
        for key, run in asked.items():
            if run.kind in (*KINDS, DISTIL):
                models[key] = {**_model(run, runs), "before": None, "utility": None, "attacks": set()}
                models[key]["kept"] = kept.get(models[key]["name"])
        looks = []
        for run in done:
            model = models.get(run.parents.get("model", ""))
            if model is None:
                continue
            if run.kind == SCORE:
                for column, name in (("before", main), ("utility", utility)):
                    if _short(run.options["score"]) == name:
                        model[column] = read_json(run.path / RESULT)["value"]
            elif run.kind == ATTACK:
                model["attacks"].add(_short(run.options["attack"]))
                looks += [{"name": model["name"], "seed": model["seed"], **look} for look in _looks(run)]
    attacks = dict.fromkeys(_short(run.options["attack"]) for run in asked.values() if run.kind == ATTACK)
    columns = ["name", "model", "suppressor", "alpha", "seed", "before", "utility", "kept", "attacks"]
    frame = pd.DataFrame(models.values(), columns=columns).astype({"alpha": float, "before": float, "utility": float})
    frame = frame.sort_values("attacks", key=lambda found: found.map(len), kind="stable")
    frame = frame.drop_duplicates(["name", "seed"], keep="last")  # others are of a start with other options
    frame = frame.sort_values(["name", "seed"], ignore_index=True)
    return ArenaResults(frame, _with_excess(looks), (*sorted(attacks),), main or "main score", utility, finished, count)


def _short(reference: str) -> str:
    """Return the name of a score or an attack, also of a class of the user's own."""
    return str(reference).rpartition(":")[2]


def _main(directory: Path, runs: list[Run]) -> str:
    """Return the name of the main score. Older studies say it in their charts only. Empty: unknown."""
    for run in runs:
        if run.kind == ATTACK and MAIN in run.options:
            return _short(run.options[MAIN])
    charts = read_charts(directory / CHARTS) if (directory / CHARTS).is_file() else {}
    return next((chart.y for chart in charts.values()), "")


def _model(run: Run, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Return what distinguishes a model from the others of the arena."""
    teacher = runs[run.parents["teacher"]] if run.kind == DISTIL else run
    routed = teacher.kind == ROUTED or any(runs[key].kind == ROUTED for key in teacher.parents.values() if key in runs)
    method = {ROUTED: NONE, UNLEARN: _short(teacher.options.get("method", ""))}.get(teacher.kind)
    keys: dict[str, Any] = {"before": "era" if routed else NONE, "method": method}

    def name(kind: str, **more: Any) -> str:
        return Entry(run.seed, Stage(kind, {}, run.seed, {}), {}, {}, **keys, **more).name

    alpha = run.options.get("alpha")
    then = NONE if run.kind != DISTIL else "distil" if alpha is None else "undo"
    return {
        "name": name(run.kind, then=then, alpha=alpha),
        "model": KINDS.get(run.kind, {"distil": "distilled"}.get(then, then)),
        "suppressor": None if method is None else name(teacher.kind),
        "alpha": alpha,
        "seed": run.seed,
    }


def _looks(run: Run) -> Iterator[dict[str, Any]]:
    attack = _short(run.options["attack"])
    for look in read_json(run.path / RESULT)["looks"]:
        if look[MAIN] is not None:
            yield {"attack": attack, "attempt": str(look["attempt"]), "step": look["step"], "value": look[MAIN]}


def _with_excess(looks: list[dict[str, Any]]) -> pd.DataFrame:
    """Return looks with their excess over the last look of the retrained model at the same attempt until this step."""
    same = ["seed", "attack", "attempt"]
    frame = pd.DataFrame(looks, columns=["name", *same, "step", "value"]).astype({"step": float, "value": float})
    taught = frame[frame.name == RETRAINED].groupby([*same, "step"]).value.max().rename("taught").reset_index()
    found = pd.merge_asof(frame.sort_values("step"), taught.sort_values("step"), on="step", by=same)
    return found.assign(excess=(found.value - found.taught).clip(lower=0)).drop(columns="taught")
