"""Results of an UNDO study: tables, a summary, figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.errors import UserError
from routed_rl.lm.inputs import Text
from routed_rl.options.undo import Distil, UndoOptions
from routed_rl.runs import Stage, read_metrics, with_ancestors
from routed_rl.runs.charts import Chart
from routed_rl.runs.grid import STAGES
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import aggregate, escaped, markdown, shown_mean, tidy
from routed_rl.unlearning.attacks import Attack, WorstCase, robustness, worst_case
from routed_rl.unlearning.distillation import StopRule
from routed_rl.unlearning.metrics import Metric
from routed_rl.unlearning.undo_study.charts import relearning_chart, robustness_chart
from routed_rl.unlearning.undo_study.columns import MEANINGS
from routed_rl.unlearning.undo_study.figures import figures
from routed_rl.unlearning.undo_study.measuring import ATTACK, ATTACKS, METRICS, make_attack
from routed_rl.unlearning.undo_study.members import Member, stop_metric
from routed_rl.unlearning.undo_study.stages import TEACHERS, Worker, check_teacher

KEYS = ("model", "suppressor", "strength", "labelled", "alpha", "beta", "seed")
KEPT = 0.9
"""Share of the retain performance that the second kind of attacker must keep."""


def find(options: UndoOptions, text: Text, members: Sequence[Member], failed: Mapping[Path, str]) -> Findings | None:
    """Return the results of all members whose stages are finished. None: there is no such member."""
    assert options.out is not None
    root = options.out / STAGES
    worker = Worker(options, text, root)
    attacks, names = named_measures(options)
    metrics = {name: worker.domains.metric(name, options.test_documents) for name in names}
    main = next(iter(attacks)), next(iter(metrics))
    rows: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    curves: dict[Member, WorstCase] = {}
    kept: dict[Member, WorstCase] = {}
    matching: dict[str, Any] = {}
    for member in members:
        measuring = member.measuring
        needed = (member.stage, *measuring.measures.values(), *measuring.curves.values(), measuring.distance)
        if any(stage.result(root) is None for stage in needed):  # attacked models may have been deleted
            continue
        made, distance = member.stage.result(root), member.measuring.distance.result(root)
        assert made is not None and distance is not None
        row = member.keys()
        for name, stage in member.measuring.measures.items():
            row |= {
                f"{prefix(options, metric=name)}{column}": value for column, value in _measured(stage, root).items()
            }
        for (attack, name), stage in member.measuring.curves.items():
            given, columns = _attacked(stage, root, name, metrics[name], make_attack(options, attack))
            row |= {f"{prefix(options, attack, name)}{column}": value for column, value in columns.items()}
            if (attack, name) == main:
                curves[member], kept[member] = given
                row["attack"] = f"{stage.parents.get('attack', stage).path(root).name}"
        row |= {name: distance[name] for name in ("distance", "barrier")}
        row |= {name: made[name] for name in ("steps", "tokens", "flops")} | {"reached": made.get("reached")}
        row |= {"early": made.get("early")}
        if member.stage.kind == "filtered" and options.filtered_tokens is not None:
            tokens = options.filtered_tokens
            row |= {"tokens": tokens, "flops": tokens * made["flops_per_token"]}
        row |= {name: made.get(name) for name in ("tuning_steps", "tuning_flops")}
        row["tuned"] = " ".join(f"{name}={value:g}" for name, value in made.get("tuning_settings", {}).items()) or None
        row["tuning_kept"] = made.get("tuning_kept")
        teacher = next((s for s in with_ancestors([member.stage]) if s.kind in TEACHERS), None)
        if teacher is not None:
            row |= _of_teacher(teacher, member.measuring.distance.parents["reference"], worker)
        rows.append(row)
        if member.model.startswith("matched") and member.seed == options.first_seed:
            matching[member.name] = read_metrics(member.stage.path(root) / "metrics.csv")
        for part, stage in _timed(member, options):
            if not stage.path(root).exists():
                continue
            seconds = sum(float(row["seconds"]) for row in read_metrics(stage.path(root) / "timings.csv"))
            timings.append({**member.keys(), "part": part, "seconds": seconds})
    if not rows:
        return None
    usual = Distil.within if options.distil.within is None else options.distil.within
    rule = worker.stop_rule(replace(options.distil, within=usual))
    frame = tidy(compared(rows, options, rule), KEYS)
    keys = (*KEYS, "part")
    words = summary(frame, options, list(dict.fromkeys(member.name for member in curves)), metrics)
    drawn = figures(frame, curves, kept, matching, options, metrics[main[1]])
    charts: dict[str, Callable[[], Chart]] = {"relearning": lambda: relearning_chart(curves, metrics[main[1]])}
    if "compute" in drawn:
        charts["compute"] = lambda: robustness_chart(frame)
    return Findings(frame, tidy(timings, keys), keys, words, drawn, MEANINGS, dict(failed), charts)


@lru_cache(maxsize=1)
def named_measures(options: UndoOptions) -> tuple[dict[str, str], dict[str, str]]:
    """Return the short names of attacks and of metrics, by reference, in order."""
    attacks, metrics = ATTACKS.find_all(options.attack, "--attack"), METRICS.find_all(options.metric, "--metric")
    return {of.reference: name for name, of in attacks.items()}, {of.reference: name for name, of in metrics.items()}


def prefix(options: UndoOptions, attack: str | None = None, metric: str | None = None) -> str:
    """Return the beginning of columns about a metric and an attack: nothing for the first ones of the options."""
    attacks, metrics = named_measures(options)
    pairs = ((metric, metrics), (attack, attacks))
    return "".join(f"{names[name]}_" for name, names in pairs if name is not None and name != next(iter(names)))


def _timed(member: Member, options: UndoOptions) -> Iterator[tuple[str, Stage]]:
    """Give the stages that train or attack a model, each with its name in ``timings.csv``."""
    if "tuned" in member.stage.parents:
        yield "tune", member.stage.parents["tuned"]
    yield member.stage.kind, member.stage
    attacks = {attack: stage for (attack, _), stage in member.measuring.curves.items()} | {**member.measuring.attacks}
    for attack, stage in attacks.items():
        yield f"{prefix(options, attack)}{ATTACK}", stage


def _measured(stage: Stage, root: Path) -> dict[str, Any]:
    """Columns about a model's performance before an attack."""
    found = stage.result(root)
    assert found is not None
    return {**found["measures"], **{f"forget_int{bits}": value for bits, value in found["quantised"].items()}}


def _attacked(
    stage: Stage, root: Path, name: str, metric: Metric, attack: Attack
) -> tuple[tuple[WorstCase, WorstCase], dict[str, Any]]:
    """The worst cases of an attack, without and with a bound on the retain performance, and columns about them."""
    found = stage.result(root)
    assert found is not None
    rates = all(isinstance(setting, int | float) for setting in attack.attempts)
    curves = {float(setting) if rates else setting: curve for setting, curve in found["curves"][name].items()}
    steps = (0, *attack.measured)
    case, kept = (worst_case(curves, metric.higher_is_better, share, steps) for share in (None, KEPT))
    row: dict[str, Any] = {}
    for name, of in (("forget", case), ("forget_kept", kept)):
        row |= {f"{name}_{step}": value for step, value in zip(of.steps, of.forget, strict=True)}
    row |= {"worst_learning_rate": case.learning_rate[-1], "inside_grid": case.inside if rates else None}
    row["diverged"] = " ".join(f"{rate:g}" if rates else str(rate) for rate in case.diverged) or None
    return (case, kept), row


def _of_teacher(teacher: Stage, reference: Stage, worker: Worker) -> dict[str, Any]:
    """Columns about the teacher, for a suppressed model and all models made from it."""
    measurer = worker.measurer
    made, *both = (
        stage.result(worker.root) or {}
        for stage in (teacher, measurer.measure(teacher, measurer.main), measurer.measure(reference, measurer.main))
    )
    try:
        check_teacher(both[0]["measures"], both[1]["measures"], worker.ignorance())
        weak = False
    except UserError:
        weak = True
    return {"weak_teacher": weak, "labelled_documents": made["labelled_documents"]}


def compared(rows: Sequence[dict[str, Any]], options: UndoOptions, rule: StopRule) -> list[dict[str, Any]]:
    """Add robustness and compute to the rows (UNDO); None where the models to compare with are not finished.

    ``comparable`` says whether a student's robustness means something: its retain performance is its teacher's, and the
    teacher has forgotten. A student that has lost what it should retain relearns slowly whatever was done to it.

    Args:
        rule: when a retain performance is as good as the teacher's.
    """
    retain = f"{prefix(options, metric=stop_metric(options))}retain"
    attacks, metrics = named_measures(options)
    pairs = [(prefix(options, attack, metric), attack) for attack in attacks for metric in metrics]
    attacked = {before: f"{before}forget_{max(make_attack(options, attack).measured)}" for before, attack in pairs}

    def find(**keys: Any) -> dict[str, Any] | None:
        return next((row for row in rows if all(row[name] == value for name, value in keys.items())), None)

    compared = []
    for row in rows:
        of: dict[str, float | bool | None] = {f"{before}robustness": None for before in attacked}
        of |= dict.fromkeys(("comparable", "compute", "compute_flops"))
        filtered = find(model="filtered", labelled=None, seed=row["seed"])
        same = {name: row[name] for name in ("seed", "suppressor", "strength", "labelled")}
        teacher = find(model="suppressed", **same)
        if teacher is not None and row is not teacher:
            of["comparable"] = not row["weak_teacher"] and rule.reached(row[retain], teacher[retain])
        if filtered is not None and teacher is not None:
            for before, last in attacked.items():
                of[f"{before}robustness"] = robustness(row[last], teacher[last], filtered[last])
            if row is not teacher:
                steps = "steps" if filtered["steps"] is not None else "tokens"  # of a model from elsewhere
                if filtered[steps] is not None:
                    of["compute"] = row[steps] / filtered[steps]
                if None not in (teacher["flops"], filtered["flops"]):  # a model from elsewhere may have an unknown cost
                    of["compute_flops"] = (row["flops"] + teacher["flops"]) / filtered["flops"]
        compared.append({**row, **of})
    return compared


def summary(frame: pd.DataFrame, options: UndoOptions, names: Sequence[str], metrics: Mapping[str, Metric]) -> str:
    """Return the study in Markdown.

    Args:
        frame: the rows of ``results.csv``.
        names: names of the models, in the order of the table.
        metrics: by name.
    """
    doubtful = sorted(set(frame.name[(frame.comparable == False) & frame.robustness.notna()]))  # noqa: E712
    rates, (attacks, _) = len(options.relearn.learning_rates), named_measures(options)
    parts = [
        "# Unlearning and relearning",
        f"Mean ± half a 95 % interval over seeds ({frame.seed.nunique()}). *Steps*: gradient steps that made the "
        "model. *Forget after attack steps*: the attacker's best result within so many steps"
        f"{f', in a sweep of {rates} learning rates' if list(attacks) == ['relearn'] else ''}. *Robustness*: 0 for "
        "the suppressed model, 1 for the filtered model. *Steps* and *FLOPs / filtered*: compared with the training of "
        "the filtered model.",
    ]
    for attack, called in attacks.items():
        for name, metric in metrics.items():
            last = max(make_attack(options, attack).measured)
            table = _table(frame, prefix(options, metric=name), prefix(options, attack, name), last, names, doubtful)
            by = f"Attack: {escaped(called)}. " if len(attacks) > 1 else ""
            parts += [f"{by}{metric.unit[0].upper()}{metric.unit[1:]}:", table]
    parts += [
        f"{sentence}: {'; '.join(map(escaped, those))}."
        for sentence, those in _remarks(frame, options, doubtful)
        if those
    ]
    return "\n\n".join(parts) + "\n"


def _table(
    frame: pd.DataFrame, metric: str, attacked: str, last: int, names: Sequence[str], doubtful: Sequence[str]
) -> str:
    """Return the table of a metric and an attack; both are given as the beginnings of their columns."""
    measures = {
        "steps": "steps",
        f"{metric}retain": "retain",
        f"{metric}forget": "forget",
        f"{attacked}forget_{last}": f"forget within {last} attack steps",
        f"{attacked}robustness": "robustness",
        "compute": "steps / filtered",
        "compute_flops": "FLOPs / filtered",
    }
    cells = {
        (name, row["name"]): shown_mean(row, 0 if name == "steps" else 3)
        for name in measures
        if name in frame
        for row in aggregate(frame.dropna(subset=[name]), name, ["name"]).to_dict("records")
    }
    for model in doubtful:
        cells[f"{attacked}robustness", model] = f"({cells[f'{attacked}robustness', model]})"
    rows = [[model, *(cells.get((name, model), "") for name in measures)] for model in names]
    return markdown(["model", *measures.values()], rows)


def _remarks(frame: pd.DataFrame, options: UndoOptions, doubtful: list[str]) -> list[tuple[str, list[str]]]:
    """Return sentences about results that mean less than they seem to, each with the models that it is about."""
    least = options.distil.least
    tuned = frame.dropna(subset=["tuned"]).drop_duplicates(["name", "tuned"]) if "tuned" in frame else frame.head(0)
    diverged = {
        name: " ".join(dict.fromkeys(" ".join(rates).split()))
        for name, rates in frame.dropna(subset=["diverged"]).groupby("name").diverged
    }
    return [
        (
            "The attacker's best learning rate is the lowest or highest of the sweep; a wider sweep may find a better "
            "one (--relearn.learning-rates)",
            _named(frame, "inside_grid", False) if options.attack[0] == "relearn" else [],
        ),
        (
            "Robustness is in parentheses where it means little: the student does not have its teacher's retain "
            "performance, or the teacher had not forgotten",
            doubtful,
        ),
        ("At the last step the retain performance was not yet the teacher's", _named(frame, "reached", False)),
        ("The teacher had not forgotten, or had forgotten everything", _named(frame, "weak_teacher", True)),
        (
            "Settings that were found first (--tune), with the gradient steps of all trials",
            [f"{row.name} ({row.tuned}; {row.tuning_steps:.0f} steps)" for row in tuned.itertuples()],
        ),
        (
            f"No settings that were tried keep the share {options.tune} of the retain performance",
            _named(tuned, "tuning_kept", False),
        ),
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
