"""Results of an UNDO study: tables, a summary, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.errors import UserError
from routed_rl.lm.inputs import Text
from routed_rl.options.undo import Distil, UndoOptions
from routed_rl.runs import Stage, read_metrics, with_ancestors
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import aggregate, markdown, shown_mean, tidy
from routed_rl.unlearning.attacks import WorstCase, robustness, worst_case
from routed_rl.unlearning.undo_study.columns import MEANINGS
from routed_rl.unlearning.undo_study.domains import higher_is_better
from routed_rl.unlearning.undo_study.figures import UNITS, figures
from routed_rl.unlearning.undo_study.members import STAGES, Member
from routed_rl.unlearning.undo_study.stages import TEACHERS, check_teacher, ignorance, stop_rule

KEYS = ("model", "suppressor", "strength", "labelled", "alpha", "beta", "seed")
KEPT = 0.9
"""Share of the retain performance that the second kind of attacker must keep."""


def find(options: UndoOptions, text: Text, members: Sequence[Member], failed: Mapping[Path, str]) -> Findings | None:
    """Return the results of all members whose stages are finished. None: there is no such member."""
    assert options.out is not None
    root, higher = options.out / STAGES, higher_is_better(options)
    rows: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    curves: dict[Member, WorstCase] = {}
    kept: dict[Member, WorstCase] = {}
    matching: dict[str, Any] = {}
    for member in members:
        made, attacked = member.stage.result(root), member.attack.result(root)
        if made is None or attacked is None:
            continue
        found = {float(rate): curve for rate, curve in attacked["curves"].items()}
        steps = (0, *options.relearn.measured)
        cases = {
            "forget": worst_case(found, higher, None, steps),
            "forget_kept": worst_case(found, higher, KEPT, steps),
        }
        curves[member], kept[member] = cases.values()
        row = {**member.keys(), **made["measures"]}
        for prefix, case in cases.items():
            row |= {f"{prefix}_{step}": value for step, value in zip(case.steps, case.forget, strict=True)}
        row |= {"worst_learning_rate": curves[member].learning_rate[-1], "inside_grid": curves[member].inside}
        row |= {"diverged": " ".join(f"{rate:g}" for rate in curves[member].diverged) or None}
        row |= {f"forget_int{bits}": value for bits, value in attacked["quantised"].items()}
        row |= {name: attacked[name] for name in ("distance", "barrier")}
        row |= {name: made[name] for name in ("steps", "tokens", "flops")} | {"reached": made.get("reached")}
        row |= {"early": made.get("early")}
        teacher = next((s for s in with_ancestors([member.stage]) if s.kind in TEACHERS), None)
        if teacher is not None:
            row |= _of_teacher(teacher, member.attack.parents["reference"], options, text, root)
        rows.append(row)
        if member.model.startswith("matched") and member.seed == options.first_seed:
            matching[member.name] = read_metrics(member.stage.path(root) / "metrics.csv")
        for stage in (member.stage, member.attack):
            seconds = sum(float(row["seconds"]) for row in read_metrics(stage.path(root) / "timings.csv"))
            timings.append({**member.keys(), "part": stage.kind, "seconds": seconds})
    if not rows:
        return None
    frame = tidy(_compared(rows, options), KEYS)
    keys = (*KEYS, "part")
    words = summary(frame, options, list(dict.fromkeys(member.name for member in curves)))
    drawn = figures(frame, curves, kept, matching, options)
    return Findings(frame, tidy(timings, keys), keys, words, drawn, MEANINGS, dict(failed))


def _of_teacher(teacher: Stage, reference: Stage, options: UndoOptions, text: Text, root: Path) -> dict[str, Any]:
    """Columns about the teacher, for a suppressed model and all models made from it."""
    made, before = teacher.result(root), reference.result(root)
    assert made is not None and before is not None
    try:
        check_teacher(made["measures"], before["measures"], ignorance(options, text))
        weak = False
    except UserError:
        weak = True
    return {"weak_teacher": weak, "labelled_documents": made["labelled_documents"]}


def _compared(rows: Sequence[dict[str, Any]], options: UndoOptions) -> list[dict[str, Any]]:
    """Add robustness and compute to the rows (UNDO); None where the models to compare with are not finished.

    ``comparable`` says whether a student's robustness means something: its retain performance is its teacher's, and the
    teacher has forgotten. A student that has lost what it should retain relearns slowly whatever was done to it.
    """
    attacked = f"forget_{max(options.relearn.measured)}"
    usual = Distil.within if options.distil.within is None else options.distil.within
    rule = stop_rule(options, replace(options.distil, within=usual))

    def find(**keys: Any) -> dict[str, Any] | None:
        return next((row for row in rows if all(row[name] == value for name, value in keys.items())), None)

    compared = []
    for row in rows:
        of: dict[str, float | bool | None] = dict.fromkeys(("robustness", "comparable", "compute", "compute_flops"))
        filtered = find(model="filtered", labelled=None, seed=row["seed"])
        same = {name: row[name] for name in ("seed", "suppressor", "strength", "labelled")}
        teacher = find(model="suppressed", **same)
        if teacher is not None and row is not teacher:
            of["comparable"] = not row["weak_teacher"] and rule.reached(row["retain"], teacher["retain"])
        if filtered is not None and teacher is not None:
            of["robustness"] = robustness(row[attacked], teacher[attacked], filtered[attacked])
            if row is not teacher:
                of["compute"] = row["steps"] / filtered["steps"]
                if teacher["flops"] is not None:  # a teacher made elsewhere has an unknown cost
                    of["compute_flops"] = (row["flops"] + teacher["flops"]) / filtered["flops"]
        compared.append({**row, **of})
    return compared


def summary(frame: pd.DataFrame, options: UndoOptions, names: Sequence[str]) -> str:
    """Return the study in Markdown.

    Args:
        frame: the rows of ``results.csv``.
        names: names of the models, in the order of the table.
    """
    last = max(options.relearn.measured)
    measures = {
        "steps": "steps",
        "retain": "retain",
        "forget": "forget",
        f"forget_{last}": f"forget after {last} attack steps",
        "robustness": "robustness",
        "compute": "steps / filtered",
        "compute_flops": "FLOPs / filtered",
    }
    cells = {
        (name, row["name"]): shown_mean(row, 0 if name == "steps" else 3)
        for name in measures
        if name in frame
        for row in aggregate(frame.dropna(subset=[name]), name, ["name"]).to_dict("records")
    }
    doubtful = sorted(set(frame.name[(frame.comparable == False) & frame.robustness.notna()]))  # noqa: E712
    for model in doubtful:
        cells["robustness", model] = f"({cells['robustness', model]})"
    table = [[model, *(cells.get((name, model), "") for name in measures)] for model in names]
    what = UNITS[options.metric]
    rates = len(options.relearn.learning_rates)
    parts = [
        "# Unlearning and relearning",
        f"{what[0].upper()}{what[1:]}: mean ± half a 95 % interval over seeds ({frame.seed.nunique()}). *Steps*: "
        "gradient steps that made the model. *Forget after attack steps*: the attacker's best result within so many "
        f"steps, in a sweep of {rates} learning rates. *Robustness*: 0 for the suppressed model, 1 for the filtered "
        "model. *Steps* and *FLOPs / filtered*: compared with the training of the filtered model.",
        markdown(["model", *measures.values()], table),
        *(f"{sentence}: {'; '.join(those)}." for sentence, those in _remarks(frame, options, doubtful) if those),
    ]
    return "\n\n".join(parts) + "\n"


def _remarks(frame: pd.DataFrame, options: UndoOptions, doubtful: list[str]) -> list[tuple[str, list[str]]]:
    """Return sentences about results that mean less than they seem to, each with the models that it is about."""
    least = options.distil.least
    diverged = {
        name: " ".join(dict.fromkeys(" ".join(rates).split()))
        for name, rates in frame.dropna(subset=["diverged"]).groupby("name").diverged
    }
    return [
        (
            "The attacker's best learning rate is the lowest or highest of the sweep; a wider sweep may find a better "
            "one (--relearn.learning-rates)",
            _named(frame, "inside_grid", False),
        ),
        (
            "Robustness is in parentheses where it means little: the student does not have its teacher's retain "
            "performance, or the teacher had not forgotten",
            doubtful,
        ),
        ("At the last step the retain performance was not yet the teacher's", _named(frame, "reached", False)),
        ("The teacher had not forgotten, or had forgotten everything", _named(frame, "weak_teacher", True)),
        (
            "The noise cost so little that distillation stopped after its least number of steps (--distil.least "
            f"{least}); the student is still close to its teacher, so use a larger α",
            _named(frame[frame.model == "undo"], "early", True),
        ),
        (
            "The attack diverged at the learning rates in brackets; what it reached before that counts",
            [f"{name} ({rates})" for name, rates in diverged.items()],
        ),
    ]


def _named(frame: pd.DataFrame, column: str, value: bool) -> list[str]:
    """Return the names of the models that have a value in a column, if there is such a column."""
    return sorted(set(frame.name[frame[column] == value])) if column in frame else []
