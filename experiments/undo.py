"""``routed-rl undo``: unlearn, noise, distil, and attack what came of it; runs only what has changed."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from experiments import undo_figures
from experiments.errors import UserError, at_least, user_input
from experiments.language import open_text
from experiments.process import check_device, one_thread
from experiments.progress import progress_display
from experiments.study_directory import check_study, start_study
from experiments.tables import aggregate, markdown, shown_mean, write_table
from experiments.undo_commands import TASKS, Undo
from experiments.undo_stages import STAGES, Member, Worker, members, total_steps
from experiments.workers import PYTHON, Kind, open_backend, options, run_all
from routed_rl.runs import Stage, plan, read_metrics, with_ancestors, write_bytes
from routed_rl.unlearning import WorstCase, robustness, worst_case

RESULTS, TIMINGS, SUMMARY = "results.csv", "timings.csv", "summary.md"
KEYS = ("model", "suppressor", "strength", "labelled", "alpha", "beta", "seed")
KEPT = 0.9
"""Share of what is retained that the second kind of attacker must keep."""


@dataclass(frozen=True)
class StageRun:
    """A stage, as a run of a grid."""

    stage: Stage
    command: Undo
    out: Path
    seed: int
    force: bool = False


def main(command: Undo) -> None:
    one_thread()
    command = replace(command, out=Path(os.path.abspath(command.out or Path("runs") / f"undo-{command.task}")))
    command = replace(command, corpora=Path(os.path.abspath(command.corpora)))
    assert command.out is not None
    _check(command)
    with user_input():
        check_device(command.device)
        text = open_text(command)
        study = members(command, text)
        if command.only is not None:
            _do(command, Worker(command, text, command.out), study)
            return
        Worker(command, text, command.out)
        identity = {"task": command.task, "device": command.device}
        check_study(command.out, identity)
        stages = with_ancestors(stage for member in study for stage in (member.stage, member.attack))
        reasons = {stage.key: reason for stage, reason in plan(stages, command.out / STAGES)}
    if command.plan:
        _show_plan(study, stages, reasons)
        return
    todo = [stage for stage in stages if reasons[stage.key] is not None]
    failed: dict[Path, str] = {}
    with open_backend(command.backend, command.ray_address, command.workers, command.out, bool(todo)) as backend:
        start_study(command.out, identity)
        while todo:
            left = {stage.key for stage in todo}
            ready = [stage for stage in todo if not any(parent.key in left for parent in stage.parents.values())]
            ready = [stage for stage in ready if _has_parents(stage, command.out / STAGES)]
            if not ready:
                break
            runs = [StageRun(stage, command, stage.path(command.out / STAGES), stage.seed) for stage in ready]
            failed |= run_all(runs, KIND, command.workers, backend)
            todo = [stage for stage in todo if stage not in ready]
    _report(command, study)
    if failed:
        for out, reason in failed.items():
            print(f"routed-rl: failed: {out.name}: {reason}", file=sys.stderr)
        raise UserError(f"{len(failed)} stages failed; the others are in {command.out / RESULTS}")


def _command(batch: Sequence[StageRun]) -> list[str]:
    (run,) = batch
    usual = Undo(task=run.command.task, preset=run.command.preset, **TASKS[run.command.task, run.command.preset])
    named = ["--task", run.command.task, "--preset", run.command.preset]
    return [*PYTHON, "experiments.cli", "undo", *named, *options(replace(run.command, only=run.out.name), usual)]


KIND = Kind(
    config=lambda run: run.stage.record.config,
    command=_command,
    total=lambda run: total_steps(run.stage, run.command),
    counter="step",
)


def _do(command: Undo, worker: Worker, study: Sequence[Member]) -> None:
    """Do one stage, by its directory's name."""
    stages = with_ancestors(stage for member in study for stage in (member.stage, member.attack))
    stage = next((stage for stage in stages if stage.path(worker.root).name == command.only), None)
    if stage is None:
        raise UserError(f"--only {command.only} is no stage of this study: see --plan")
    with progress_display() as display:
        task = display.add_task(stage.kind, total=total_steps(stage, command))
        try:
            worker.do(stage, lambda step: display.update(task, completed=step + 1))
        except FloatingPointError as error:
            raise UserError(str(error)) from error


def _has_parents(stage: Stage, root: Path) -> bool:
    return all(parent.result(root) is not None for parent in stage.parents.values())


def _check(command: Undo) -> None:
    if (command.task, command.preset) not in TASKS:
        raise UserError(f"there is no --preset {command.preset} of --task {command.task}")
    at_least(1, seeds=command.seeds, workers=command.workers, batch_size=command.batch_size)
    for name in ("suppress", "labelled", "strengths", "students", "alphas", "betas"):
        given = getattr(command, name)
        if not given and name not in ("strengths", "students"):
            raise UserError(f"--{name} must be one or more, got none")
        if len(set(given)) < len(given):
            raise UserError(f"--{name} must be each once, got {' '.join(map(str, given))}")
    for name, values in (("alphas", command.alphas), ("labelled", command.labelled)):
        if bad := [value for value in values if not 0 <= value <= 1]:
            raise UserError(f"--{name} must lie within 0 … 1, got {bad[0]}")
    if bad := [beta for beta in command.betas if not 0 <= beta < math.inf]:
        raise UserError(f"--betas must be 0 or more, got {bad[0]}")
    relearning = command.relearn
    at_least(1, **{"relearn.steps": relearning.steps, "relearn.batch-size": relearning.batch_size})
    if not relearning.learning_rates or min(relearning.learning_rates) <= 0:
        raise UserError(
            f"--relearn.learning-rates must be one or more above 0, got {' '.join(map(str, relearning.learning_rates))}"
        )
    if not relearning.measured or not 0 < min(relearning.measured) <= max(relearning.measured) <= relearning.steps:
        raise UserError(
            f"--relearn.measured must be steps within 1 … {relearning.steps}, got "
            f"{' '.join(map(str, relearning.measured)) or 'none'}"
        )
    if not 0 <= relearning.retain_share < 1:
        raise UserError(f"--relearn.retain-share must be 0 or more and below 1, got {relearning.retain_share}")


def _show_plan(study: Sequence[Member], stages: Sequence[Stage], reasons: Mapping[str, str | None]) -> None:
    of = {stage.key: member.name for member in study for stage in (member.stage, member.attack)}
    rows = [
        [f"{stage.kind}-{stage.key}", of[stage.key], f"{stage.seed}", reasons[stage.key] or "is finished"]
        for stage in stages
    ]
    todo = sum(reason is not None for reason in reasons.values())
    console = Console()
    console.print(Markdown(markdown(["stage", "model", "seed", "it"], rows)))
    console.print(f"{todo} of {len(stages)} stages would run")


def _report(command: Undo, study: Sequence[Member]) -> None:
    """Gather all that is finished into tables, a summary and figures."""
    assert command.out is not None
    root = command.out / STAGES
    rows: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    curves: dict[Member, WorstCase] = {}
    matching: dict[str, Any] = {}
    for member in study:
        made, attacked = member.stage.result(root), member.attack.result(root)
        if made is None or attacked is None:
            continue
        found = {float(rate): curve for rate, curve in attacked["curves"].items()}
        higher = command.metric == "answers"
        cases = {"worst": worst_case(found, higher), "kept": worst_case(found, higher, KEPT)}
        curves[member] = cases["worst"]
        row = {**member.keys(), **made["measures"], "distance": attacked["distance"]}
        for name, case in cases.items():
            prefix = "forget" if name == "worst" else "forget_kept"
            row |= {f"{prefix}_{step}": value for step, value in zip(case.steps, case.forget, strict=True)}
        row |= {"worst_learning_rate": cases["worst"].learning_rate[-1], "inside_grid": cases["worst"].inside}
        row |= {name: made.get(name) for name in ("steps", "tokens", "flops", "reached", "labelled_documents")}
        rows.append(row)
        if not made.get("reached", True) and member.model.startswith("matched") and member.seed == command.first_seed:
            matching[member.name] = read_metrics(member.stage.path(root) / "metrics.csv")
        for stage in (member.stage, member.attack):
            seconds = sum(float(row["seconds"]) for row in read_metrics(stage.path(root) / "timings.csv"))
            timings.append({**member.keys(), "stage": stage.kind, "seconds": seconds})
    if not rows:
        return
    frame = write_table(_compared(rows, command), command.out / RESULTS, KEYS)
    write_table(timings, command.out / TIMINGS, (*KEYS, "stage"))
    text = summary(frame, command)
    write_bytes(command.out / SUMMARY, text.encode())
    undo_figures.draw(frame, curves, matching, command.metric, command.out)
    console = Console()
    console.print(Markdown(text))
    console.print(f"Tables and figures: {command.out}")


def _compared(rows: Sequence[dict[str, Any]], command: Undo) -> list[dict[str, Any]]:
    """The rows with robustness and compute, where the models that they are compared with are there (UNDO)."""
    last = f"forget_{max(command.relearn.measured)}"

    def find(**keys: Any) -> dict[str, Any] | None:
        return next((row for row in rows if all(row[name] == value for name, value in keys.items())), None)

    compared = []
    for row in rows:
        of = {"robustness": None, "compute": None, "compute_flops": None}
        filtered = find(model="filtered", labelled=None, seed=row["seed"])
        same = {name: row[name] for name in ("seed", "suppressor", "strength", "labelled")}
        teacher = find(model="suppressed", **same)
        if filtered is not None and teacher is not None:
            of["robustness"] = robustness(row[last], teacher[last], filtered[last])
            if row is not teacher:
                of["compute"] = row["steps"] / filtered["steps"]
                of["compute_flops"] = (row["flops"] + teacher["flops"]) / filtered["flops"]
        compared.append({**row, **of})
    return compared


def summary(frame: pd.DataFrame, command: Undo) -> str:
    """The study in Markdown.

    Args:
        frame: the rows of ``results.csv``.
    """
    last = max(command.relearn.measured)
    measures = {
        "retain": "retain",
        "forget": "forget",
        f"forget_{last}": f"after {last} steps of attack",
        "robustness": "robustness",
        "compute": "steps / filtered",
        "compute_flops": "FLOPs / filtered",
    }
    cells = {
        (name, row["name"]): shown_mean(row)
        for name in measures
        for row in aggregate(frame.dropna(subset=[name]), name, ["name"]).to_dict("records")
    }
    names = list(dict.fromkeys(frame.name))
    table = [[model, *(cells.get((name, model), "") for name in measures)] for model in names]
    what = "share of right answers" if command.metric == "answers" else "nats per token"
    parts = [
        "# What is forgotten, and how soon it is back",
        f"{what.capitalize()}: mean ± half a 95 % interval over {frame.seed.nunique()} seeds. The worst attack of "
        f"{len(command.relearn.learning_rates)} learning rates. *Robustness*: 0 for the suppressed model, 1 for one "
        "that never saw what is forgotten.",
        markdown(["model", *measures.values()], table),
    ]
    if not frame.inside_grid.all():
        outside = sorted(set(frame.name[~frame.inside_grid]))
        parts.append(
            "The worst learning rate is the lowest or highest that was tried, so that one beyond it may be worse "
            f"(--relearn.learning-rates): {', '.join(outside)}."
        )
    return "\n\n".join(parts) + "\n"
