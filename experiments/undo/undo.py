"""``routed-rl undo``: unlearn, noise, distil, and attack what came of it; runs only what has changed."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

from routed_rl.experiments.common.directories import check_study, start_study
from routed_rl.experiments.common.errors import UserError, at_least, user_input
from routed_rl.experiments.common.options import RUNS
from routed_rl.experiments.common.process import check_device, one_thread
from routed_rl.experiments.common.tables import markdown
from routed_rl.experiments.common.text.corpus import check_corpus_options, open_text, whole_paths
from routed_rl.experiments.common.workers import PYTHON, Kind, is_finished, open_backend, options, run_all
from routed_rl.experiments.undo.harness import check_task
from routed_rl.experiments.undo.members import STAGES, Member, members, total_steps
from routed_rl.experiments.undo.options import TASKS, Undo
from routed_rl.experiments.undo.report import report
from routed_rl.experiments.undo.stages import Worker
from routed_rl.lm import PRESETS
from routed_rl.runs import Stage, plan, with_ancestors
from routed_rl.runs.progress import progress_display

STRONGEST = 1000
"""Times a suppressor's steps: more is a slip."""


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
    command = _whole(command)
    assert command.out is not None
    root = command.out / STAGES
    _check(command)
    with user_input():
        if command.backend == "local" or command.only is not None:
            check_device(command.device)
        text = open_text(command)
        study = members(command, text)
        worker = Worker(command, text, root)
        if command.only is not None:
            _do(worker, study)
            return
        for seed in {member.seed for member in study}:
            worker.domains.attacker(seed)
            for share in command.labelled:
                worker.domains.labelled(share, seed)
        if command.metric == "lm-eval":
            for task in (command.lm_eval.retain, command.lm_eval.forget):
                check_task(task, command.lm_eval.include)
        identity = {"task": command.task, "device": command.device}
        check_study(command.out, identity)
        stages = with_ancestors(stage for member in study for stage in (member.stage, member.attack))
        reasons = {stage.key: reason for stage, reason in plan(stages, root)}
    if command.plan:
        _show_plan(study, stages, reasons)
        return
    needed = any(reason is not None for reason in reasons.values())
    runs = [StageRun(stage, command, stage.path(root), stage.seed) for stage in stages]
    with open_backend(
        command.backend, command.ray_address, command.workers, command.out, needed, command.device
    ) as backend:
        start_study(command.out, identity)
        failed = run_all(runs, KIND, command.workers, backend)
    with user_input():
        report(command, text, study)
    if failed:
        for out, reason in failed.items():
            print(f"routed-rl: failed: {out.name}: {reason}", file=sys.stderr)
        waiting = sum(run.out not in failed and not is_finished(run.out) for run in runs)
        raise UserError(f"of {len(stages)} stages {len(failed)} failed, and {waiting} wait for them")


def _whole(command: Undo) -> Undo:
    """With whole paths, for processes that run elsewhere, and the usual settings of suppressors that are not given."""
    paths: dict[str, Any] = {"out": Path(os.path.abspath(command.out or RUNS / f"undo-{command.task}"))}
    if command.prompts is not None:
        paths["prompts"] = Path(os.path.abspath(command.prompts))
    if command.lm_eval.include is not None:
        paths["lm_eval"] = replace(command.lm_eval, include=Path(os.path.abspath(command.lm_eval.include)))
    named = [given.partition("=") for given in command.teachers]
    paths["teachers"] = tuple(
        f"{name}{equals}{os.path.abspath(folder) if folder else ''}" for name, equals, folder in named
    )
    usual = TASKS.get((command.task, command.preset), {}).get("settings", ())
    given = [setting.partition("=")[0].replace("-", "_") for setting in command.settings]
    settings = tuple(setting for setting in usual if setting.partition("=")[0] not in given)
    return replace(whole_paths(command), settings=settings + command.settings, **paths)


def _command(batch: Sequence[StageRun]) -> list[str]:
    (run,) = batch
    usual = Undo(task=run.command.task, preset=run.command.preset, **TASKS[run.command.task, run.command.preset])
    named = ["--task", run.command.task, "--preset", run.command.preset]
    return [
        *PYTHON,
        "routed_rl.experiments.cli",
        "undo",
        *named,
        *options(replace(run.command, only=run.out.name), usual),
    ]


KIND = Kind(
    config=lambda run: run.stage.record.config,
    command=_command,
    total=lambda run: total_steps(run.stage),
    counter="step",
    after=lambda run: [parent.path(run.out.parent) for parent in run.stage.parents.values()],
)


def _do(worker: Worker, study: Sequence[Member]) -> None:
    """Do one stage, by its directory's name."""
    only = worker.command.only
    stages = with_ancestors(stage for member in study for stage in (member.stage, member.attack))
    stage = next((stage for stage in stages if stage.path(worker.root).name == only), None)
    if stage is None:
        raise UserError(f"--only {only} is no stage of this study: see --plan")
    with progress_display() as display:
        task = display.add_task(stage.kind, total=total_steps(stage))
        try:
            worker.do(stage, lambda step: display.update(task, completed=step + 1))
        except FloatingPointError as error:
            raise UserError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise UserError(f"the device has not enough memory: {error}") from error


def _check(command: Undo) -> None:
    """UserError for options that nothing can be made of."""
    if (command.task, command.preset) not in TASKS:
        there = next(preset for task, preset in TASKS if task == command.task)
        raise UserError(f"there is no --preset {command.preset} of --task {command.task}, only {there}")
    check_corpus_options(command)
    pretrain, distilling, relearning = command.pretrain, command.distil, command.relearn
    rows = {"batch_size": command.batch_size, "suppress_rows": command.suppress_rows}
    at_least(1, seeds=command.seeds, workers=command.workers, **rows)
    at_least(1, answer=command.answer)
    at_least(1, **{"distil.every": distilling.every, "relearn.steps": relearning.steps})
    at_least(1, **{"relearn.batch-size": relearning.batch_size})
    counts = {"relearn.examples": relearning.examples, "relearn.rank": relearning.rank}
    counts |= {"lm-eval.limit": command.lm_eval.limit}
    at_least(1, **{name: count for name, count in counts.items() if count is not None})
    at_least(
        0, **{"pretrain.steps": pretrain.steps, "pretrain.warmup": pretrain.warmup, "first-seed": command.first_seed}
    )
    at_least(0, **{"distil.steps": distilling.steps, "distil.warmup": distilling.warmup})
    if command.tokens or command.per != "document":
        raise UserError("undo forgets whole documents, not tokens in them: leave out --tokens and --per token")
    if command.batch_size % command.accumulate:
        raise UserError(
            f"--batch-size {command.batch_size} cannot be computed in --accumulate {command.accumulate} even parts"
        )
    for name in ("suppress", "labelled", "strengths", "students", "alphas", "betas"):
        given = getattr(command, name)
        if not given and name not in ("strengths", "students"):
            raise UserError(f"--{name} must be one or more, got none")
        if len(set(given)) < len(given):
            raise UserError(f"--{name} must be each once, got {' '.join(map(str, given))}")
    if bad := [alpha for alpha in command.alphas if not 0 <= alpha <= 1]:
        raise UserError(f"--alphas must lie within 0 … 1, got {bad[0]}")
    if bad := [share for share in command.labelled if not 0 < share <= 1]:
        raise UserError(f"--labelled must be above 0 and at most 1, got {bad[0]}")
    if bad := [strength for strength in command.strengths if not 0 < strength <= STRONGEST]:
        raise UserError(f"--strengths must be above 0 and at most {STRONGEST}, got {bad[0]}")
    if not 0 < command.localised <= 1:
        raise UserError(f"--localised must be above 0 and at most 1, got {command.localised}")
    numbers = {
        "betas": command.betas,
        "pretrain.learning-rate": [pretrain.learning_rate],
    }
    numbers |= {"pretrain.weight-decay": [pretrain.weight_decay], "distil.learning-rate": [distilling.learning_rate]}
    numbers |= {"distil.within": [distilling.within or 0], "distil.hidden-weight": [distilling.hidden_weight]}
    for name, values in numbers.items():
        if bad := [value for value in values if not 0 <= value < math.inf]:
            raise UserError(f"--{name.replace('_', '-')} must be 0 or more, got {bad[0]}")
    if not relearning.learning_rates or not all(0 < rate < math.inf for rate in relearning.learning_rates):
        given = " ".join(map(str, relearning.learning_rates)) or "none"
        raise UserError(f"--relearn.learning-rates must be one or more above 0, got {given}")
    if not relearning.measured or not 0 < min(relearning.measured) <= max(relearning.measured) <= relearning.steps:
        given = " ".join(map(str, relearning.measured)) or "none"
        raise UserError(f"--relearn.measured must be steps within 1 … {relearning.steps}, got {given}")
    if not 0 <= relearning.retain_share <= 1:
        raise UserError(f"--relearn.retain-share must lie within 0 … 1, got {relearning.retain_share}")
    if command.model not in PRESETS and (command.filtered or "new" in command.students):
        raise UserError(
            f"--model {command.model} is trained: there is no model that never saw anything, so say "
            "--no-filtered and leave out --students new"
        )
    include = command.lm_eval.include
    if include is not None and not include.is_dir():
        raise UserError(f"--lm-eval.include {str(include)!r} is no folder")
    if command.oracle and not command.filtered:
        raise UserError("--oracle distils the filtered model: leave out --no-filtered")
    if command.model in PRESETS and not pretrain.steps:
        raise UserError(f"--pretrain.steps 0 leaves a new {command.model} that knows nothing: name a trained --model")


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
