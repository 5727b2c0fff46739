"""An UNDO study as an object: suppress, add noise, distil, and attack every model. Only what has changed is run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.errors import user_input
from routed_rl.lm import PRESETS
from routed_rl.lm.inputs import OWN_MODELS, Source, Text, check_model, open_text, whole_paths
from routed_rl.lm.own import named
from routed_rl.options import RUNS
from routed_rl.options.undo import TASKS, Pretrain, UndoOptions
from routed_rl.paths import expanded
from routed_rl.runs import Stage, with_ancestors
from routed_rl.runs.grid import STAGES, Kind, is_finished, options
from routed_rl.runs.pool import PYTHON
from routed_rl.runs.stages import stage_table
from routed_rl.runs.studies import Findings, Study, check_study
from routed_rl.unlearning.undo_study import report
from routed_rl.unlearning.undo_study.checks import check_alternatives, check_options, check_plugins
from routed_rl.unlearning.undo_study.domains import Domains
from routed_rl.unlearning.undo_study.figures import FIGURES
from routed_rl.unlearning.undo_study.measuring import ATTACK, ATTACKS, CURVES, MEASURE, TRAINED, Measurer
from routed_rl.unlearning.undo_study.members import (
    TRAIN,
    Member,
    given_filtered,
    given_teachers,
    members,
    total_steps,
)
from routed_rl.unlearning.undo_study.stages import TEACHERS, check_given


@dataclass(frozen=True)
class StageRun:
    """A stage as one run of the study, with the stages whose results are checked before it begins."""

    stage: Stage
    checked: tuple[Stage, ...]
    options: UndoOptions
    out: Path
    seed: int
    force: bool = False


def _command(batch: Sequence[StageRun]) -> list[str]:
    given = batch[0].options
    together = given.processes if given.processes > 1 and is_shared(batch[0].stage) else 1
    return [
        *PYTHON,
        "routed_rl.unlearning.undo_study.worker",
        *("--only", *(run.out.name for run in batch)),
        *("--together", str(together)),
        *options(given, UndoOptions()),
    ]


def is_shared(stage: Stage) -> bool:
    """Return whether several processes may do a stage together. An attack of the user's own knows nothing of them."""
    if stage.kind == ATTACK:
        return ATTACKS.find(str(stage.config["attack"]), "--attack").built_in
    return stage.kind in TRAINED


def _together(runs: list[StageRun]) -> list[list[StageRun]]:
    """Group stages into commands: a model with its measures, and an attack with its own and the distance."""
    found: dict[tuple[str, bool, bool], list[StageRun]] = {}
    for run in runs:
        model = run.stage.parents.get("model")
        is_of_model = model is None or run.stage.kind == MEASURE
        # Several processes train a model, one measures it.
        apart = run.options.processes > 1 and is_shared(run.stage)
        found.setdefault(((model or run.stage).key, is_of_model, apart), []).append(run)
    return list(found.values())


@dataclass(frozen=True, init=False, eq=False)
class UndoStudy(UndoOptions, Study):
    """A study of UNDO: suppressed models, students distilled from noised copies of them, and attacks on all models.

    >>> study = UndoStudy(model=model, tokenizer=tokenizer, forget=forget, retain=retain)  # doctest: +SKIP
    >>> study.run("runs/mine")  # doctest: +SKIP

    Every field of :class:`~routed_rl.options.undo.UndoOptions`, that is every option of ``routed-rl undo``, is an
    argument with the same name and default. A study of this class and a command with the same options share their
    directory and their bytes.

    Args:
        task: name of a task, which sets the defaults of the other options. None: "custom" if a forget set is given,
            else "arithmetic".
        preset: "quick" or "paper".
        retain: the retain set; another name of ``corpus``.
        **given: the other options. ``model`` may be a Hugging Face causal language model, with its ``tokenizer``.
            ``forget`` and ``retain`` may be lists of strings, or datasets with a column ``text``. A trained model of a
            "custom" task is studied as it is. By default it is not pretrained further (``pretrain``), and no filtered
            model is trained (``filtered``).

    Models and texts that are objects are saved in the folder ``corpora`` first; the study's processes read them there.

    Raises:
        TypeError: for an argument that is not an option.
        UserError: for texts or a model that cannot be saved.
    """

    out: Path = RUNS
    KIND = Kind(
        config=lambda run: run.stage.record.config,
        command=_command,
        total=lambda run: total_steps(run.stage),
        counter="step",
        batches=_together,
        after=lambda run: [stage.path(run.out.parent) for stage in (*run.stage.parents.values(), *run.checked)],
    )
    TITLE = "UNDO study"
    FIGURES = FIGURES

    def __init__(self, *, task: str | None = None, preset: str = "quick", retain: Source | None = None, **given: Any):
        if retain is not None:
            given["corpus"] = retain
        task = task or ("custom" if "forget" in given else "arithmetic")
        usual = dict(TASKS.get((task, preset), {}))  # type: ignore[arg-type]
        if task == "custom" and given.get("model", UndoOptions.model) not in PRESETS:
            usual |= {"filtered": None, "pretrain": Pretrain(steps=0)}
        UndoOptions.__init__(self, **named(UndoOptions, usual, {**given, "task": task, "preset": preset}))
        for name, value in _whole(self).items():
            object.__setattr__(self, name, value)
        check_plugins(self)

    def plan(self) -> pd.DataFrame:
        """Return what ``run`` would do, without doing it.

        Returns:
            A row per stage, with ``stage``, its directory's name; ``model``; ``seed``; ``trains``, whether it trains or
            attacks a model; ``reason``, why it would run, or "is finished".

        Raises:
            UserError: for options, a model or texts that the study cannot use.
        """
        with user_input():
            runs = self._prepare(True)
            check_study(self.out, self._identity())
        names = {s.key: member.name for member in reversed(self.members) for s in with_ancestors([member.stage])}
        names |= {stage.key: member.name for member in reversed(self.members) for stage in member.stages}
        return stage_table([run.stage for run in runs], self.root, names, TRAINED)

    @property
    def root(self) -> Path:
        """The directory of all stages."""
        return self.out / STAGES

    @cached_property
    def text(self) -> Text:
        """The tokenised corpus and its tokenizer."""
        with user_input():
            return open_text(self)

    @cached_property
    def members(self) -> list[Member]:
        """All models of the study."""
        return members(self, self.text)

    def _identity(self) -> Mapping[str, Any]:
        return {"task": self.task, "device": self.device}

    def _prepare(self, here: bool) -> Sequence[StageRun]:
        check_options(self)
        domains = Domains(self, self.text)
        check_model(self, self.text.tokenizer)
        for seed in {member.seed for member in self.members}:
            for folder in given_teachers(self, seed).values():
                check_given(self, self.text, folder)
            if self.filtered not in (None, TRAIN):
                check_given(self, self.text, given_filtered(self, seed))
            domains.attacked_with(seed)
            for share in self.labelled:
                check_alternatives(self, domains, domains.labelled(share, seed)[0], seed)
                if self.tune is not None:
                    domains.tuning(share, seed)
        domains.check_metrics()
        options = UndoOptions(**{field.name: getattr(self, field.name) for field in fields(UndoOptions)})
        measurer = Measurer(self, self.text)
        stages = with_ancestors(stage for member in self.members for stage in member.stages)
        deleted = _deleted(stages, self.root)
        return [
            StageRun(stage, _checked(stage, measurer), options, stage.path(self.root), stage.seed)
            for stage in stages
            if stage.key not in deleted
        ]

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs. None: no run is finished."""
        return report.find(self, self.text, self.members, failed or {})

    def _failure(self, failed: Mapping[Path, str], runs: Sequence[StageRun]) -> str:
        waiting = sum(run.out not in failed and not is_finished(run.out) for run in runs)
        return f"{len(failed)} of {len(runs)} stages failed; not run, because they depend on failed ones: {waiting}"


def _deleted(stages: Sequence[Stage], root: Path) -> set[str]:
    """Return the keys of attacks whose directories are gone, and are not needed because everything is measured."""
    measured = [stage for stage in stages if stage.kind == CURVES]
    needed = {stage.parents["attack"].key for stage in measured if stage.result(root) is None}
    attacks = (stage.parents["attack"] for stage in measured)
    return {stage.key for stage in attacks if stage.key not in needed and not stage.path(root).exists()}


def _checked(stage: Stage, measurer: Measurer) -> tuple[Stage, ...]:
    """Return the stages that say whether the teacher of a distillation has forgotten."""
    if stage.kind != "distil" or stage.parents["teacher"].kind not in TEACHERS:
        return ()
    return tuple(measurer.measure(parent, measurer.main) for parent in stage.parents.values())


def _whole(options: UndoOptions) -> dict[str, Any]:
    """Options with absolute paths, and the task's settings of suppressors where none are given."""
    paths: dict[str, Any] = {"out": Path(os.path.abspath(options.out or RUNS / f"undo-{options.task}"))}
    if options.prompts is not None:
        paths["prompts"] = Path(os.path.abspath(options.prompts))
    if options.lm_eval.include is not None:
        paths["lm_eval"] = replace(options.lm_eval, include=Path(os.path.abspath(options.lm_eval.include)))
    filtered = options.filtered or TRAIN
    is_own = filtered in (TRAIN, *OWN_MODELS)
    if not is_own and Path(filtered.replace("{seed}", str(options.first_seed))).exists():  # else it is on the Hub
        paths["filtered"] = os.path.abspath(filtered)
    named = [given.partition("=") for given in options.teachers]
    paths["teachers"] = tuple(
        f"{name}{equals}{os.path.abspath(expanded(folder)) if folder else ''}" for name, equals, folder in named
    )
    usual = TASKS.get((options.task, options.preset), {}).get("settings", ())
    given = [setting.partition("=")[0].replace("-", "_") for setting in options.settings]
    paths["settings"] = tuple(s for s in usual if s.partition("=")[0] not in given) + options.settings
    return {**whole_paths(options), **paths}
