"""The work of each stage of an UNDO study."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from routed_rl.errors import UserError, user_input
from routed_rl.lm import (
    PRESETS,
    Batches,
    build_model,
    evaluate,
    keeps_apart,
    load_model,
    load_tokenizer,
    save_model,
    train,
    training_flops,
)
from routed_rl.lm.folders import outline
from routed_rl.lm.forget_and_retain import ForgetAndRetain
from routed_rl.lm.inputs import Text, check_fits, make_model, model_identity
from routed_rl.lm.suppressors.suppressor import FORWARD_PASS
from routed_rl.options.undo import Distil, UndoOptions
from routed_rl.runs import RunDirectory, Stage, derive_seed, finish_stage
from routed_rl.unlearning.attacks import barrier, load_attacked, quantised, save_attacked, weight_distance
from routed_rl.unlearning.distillation import StopRule, check_vocabulary, distil
from routed_rl.unlearning.guard import check_suppression
from routed_rl.unlearning.noise import matrices, most_changed, shrink_and_perturb
from routed_rl.unlearning.undo_study.domains import Domains
from routed_rl.unlearning.undo_study.measuring import ATTACK, CURVES, DISTANCE, MEASURE, Measurer, make_attack
from routed_rl.unlearning.undo_study.members import (
    even_parts,
    given_teachers,
    make_suppressor,
    stop_metric,
    suppression_parts,
    training_of,
)

MODEL, ATTACKED = "model", "attacked"
TEACHERS = ("suppress", "given")
"""Kinds of stages whose models are suppressed models."""
FILES = (f"{MODEL}/config.json", f"{MODEL}/model.safetensors")
"""Files of a model that later stages read."""
BITS = (8, 4)
"""Bits to which weights are rounded, to see whether rounding brings the forget performance back."""
OnStep = Callable[[int], None]
Made = tuple[nn.Module, dict[str, Any]]
"""A model, and facts about its training."""


class Worker:
    """Does stages, one after the other, in the directory of all stages."""

    def __init__(self, command: UndoOptions, text: Text, root: Path) -> None:
        self.command, self.text, self.root = command, text, root
        self.domains, self.measurer = Domains(command, text), Measurer(command, text)

    def do(self, stage: Stage, on_step: OnStep = lambda step: None) -> None:
        """Do a stage, or the rest of an interrupted stage. Its parents are finished.

        Raises:
            FloatingPointError: if a loss or a metric is not finite.
            UserError: for a teacher that has not forgotten, unless the options allow it.
        """
        makers = {"pretrain": self._pretrain, "suppress": self._suppress, "given": self._given, "distil": self._distil}
        measurers = {MEASURE: self._measure, ATTACK: self._attack, CURVES: self._curves, DISTANCE: self._distance}
        if stage.kind == "distil":
            self._check_teacher(stage)
        with stage.open(self.root) as run:
            if run.finished:
                return
            if stage.kind in measurers:
                finish_stage(run, *measurers[stage.kind](stage, run, on_step))
                return
            model, result = makers[stage.kind](stage, run, on_step)
            save_model(model, self.text.tokenizer, run.path / MODEL)
            finish_stage(run, result, FILES)

    def _pretrain(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> Made:
        model = self._new(stage.seed, "model")
        documents = self.domains.without(float(stage.config["left_out"]), stage.seed)  # type: ignore[arg-type]
        source = self.domains.batches(model, documents, self.command.batch_size, derive_seed(stage.seed, "order"))
        training = training_of(stage, self.command.accumulate)
        train(model, source, training, seed=derive_seed(stage.seed, "train"), run=run, on_step=on_step)
        return model, self._cost(model, training.steps, source)

    def _suppress(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> Made:
        config: Mapping[str, Any] = stage.config
        rows, seed = config["rows"], stage.seed
        model = self._load(stage.parents["reference"])
        method, _ = make_suppressor(self.command.settings, config["method"])
        marked, retained = self.domains.labelled(config["labelled"], seed)
        source = ForgetAndRetain(
            self.domains.batches(model, marked, rows, derive_seed(seed, "forget"), labelled=True),
            self.domains.batches(model, retained, rows, derive_seed(seed, "retain")),
        )
        cost = self._cost(model, config["recipe"]["steps"], source, method.cost)
        with user_input():
            objective = method.objective(model, derive_seed(seed, "suppress"))
        train(
            model,
            source,
            training_of(stage, suppression_parts(self.command)),
            objective,
            seed=derive_seed(seed, "suppress"),
            gradient=method.gradient,
            run=run,
            on_step=on_step,
        )
        model.requires_grad_(True)
        return model, {"labelled_documents": len(marked), **cost}

    def _given(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> Made:
        run.load_checkpoint()  # finds none, because nothing is trained here
        folders = given_teachers(self.command, stage.seed).values()
        folder = next(folder for folder in folders if model_identity(folder) == stage.config["given"])
        with user_input():
            check_given(self.command, self.text, folder)
            model = load_model(folder).to(self.command.device)
        return model, {"labelled_documents": None, "steps": None, "tokens": None, "flops": None}

    def _distil(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> Made:
        config: Mapping[str, Any] = stage.config
        settings, stops = Distil(**config["distil"]), config["stops"]
        teacher, reference = stage.parents["teacher"], stage.parents["reference"]
        taught = self._load(teacher)
        if config["student"] == "new":
            student = self._new(stage.seed, "student")
        elif config["student"] == "reference":
            student = self._load(reference)
        else:
            student = copy.deepcopy(taught)
            with user_input():
                share = config.get("localised", 1.0)
                mask = most_changed(self._load(reference), taught, share) if share < 1 else None
                touch = {} if config.get("touched", "all") == "all" else {"touch": matrices}
                noise = config["alpha"], config["beta"], derive_seed(stage.seed, "noise")
                shrink_and_perturb(student, *noise, **touch, mask=mask)
        order = derive_seed(stage.seed, "distil")
        weaker = student if keeps_apart(taught) else taught  # both must keep packed documents apart
        source = self.domains.batches(weaker, self.domains.mixture, self.command.batch_size, order)
        found = distil(
            student,
            taught,
            source,
            training_of(stage, self.command.accumulate),
            partial(self._retained, *_metric_of(stops)) if stops else None,
            self.stop_rule(settings),
            hidden_weight=settings.hidden_weight,
            seed=derive_seed(stage.seed, "train"),
            run=run,
            on_step=on_step,
        )
        cost = self._cost(student, found.steps, source, 1 + FORWARD_PASS)
        stopped = {"reached": found.reached, "early": found.early} if stops else {"reached": None}
        return student, {**stopped, **cost}

    def _retained(self, metric: str, documents: int, model: nn.Module) -> float:
        return self.domains.measure(model, metric, "retain", documents)

    def _measure(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> tuple[dict[str, Any], list[str]]:
        """Measure a model, and how much it knows with rounded weights."""
        run.load_checkpoint()  # finds none
        made, metric, count = stage.parents["model"], *_metric_of(stage.config)
        model = self._load(made)
        measures = self.domains.measures(model, metric, count)
        if bad := [kind for kind, value in measures.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"after the stage {made.kind} the {bad[0]} {metric} is {measures[bad[0]]}: lower the learning rate"
            )
        rounded = {str(bits): self.domains.measure(quantised(model, bits), metric, "forget", count) for bits in BITS}
        return {"measures": measures, "quantised": rounded}, []

    def _attack(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> tuple[dict[str, Any], list[str]]:
        """Attack a model, attempt by attempt. Save the attacked models, or measure them if the stage has a metric."""
        parts = even_parts(self.command.relearn.batch_size, self.command.accumulate)
        attack = make_attack(self.command, str(stage.config["attack"]), parts)
        model = self._load(stage.parents["model"])
        source = self.domains.attacker(model, stage.seed)
        found: dict[str, Any] = _checkpoint(run)

        def look(shown: list[dict[str, float]], setting: str, step: int, attacked: nn.Module) -> None:
            measures = self._of_attacked(stage, attacked) if "metric" in stage.config else {}
            if not measures:
                save_attacked(attacked, model, run.path / _place(setting, step))
            shown.append({"step": step, **measures})

        for i, setting in enumerate(attack.attempts):
            if str(setting) in found:
                continue
            since = time.perf_counter()
            shown: list[dict[str, float]] = []
            with suppress(FloatingPointError):
                attack.attempt(
                    setting,
                    model,
                    source,
                    partial(look, shown, str(setting)),
                    seed=derive_seed(stage.seed, "attack"),
                    on_step=partial(_later, on_step, i * attack.steps),
                )
            found[str(setting)] = shown
            done = (i + 1) * attack.steps
            run.timings.append({"step": done, "seconds": time.perf_counter() - since})
            run.metrics.append({"step": done, "reached": shown[-1]["step"] if shown else 0})
            run.save_checkpoint(i + 1, {}, {"found": found})
        if "metric" in stage.config:
            return {"curves": self._from_start(stage, found)}, []
        steps = {setting: [int(entry["step"]) for entry in shown] for setting, shown in found.items()}
        places = [run.path / _place(setting, step) for setting, those in steps.items() for step in those]
        files = [file.relative_to(run.path).as_posix() for place in places for file in place.glob("*.safetensors")]
        return {"attacked": steps}, files

    def _curves(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> tuple[dict[str, Any], list[str]]:
        """Measure the models that an attack has made."""
        attack, found = stage.parents["attack"], _checkpoint(run)
        model, folder = self._load(stage.parents["model"]), attack.path(self.root)
        for i, (setting, steps) in enumerate(self._result(attack)["attacked"].items()):
            if setting in found:
                continue
            found[setting] = []
            with suppress(FloatingPointError):
                for step in steps:
                    attacked = load_attacked(model, folder / _place(setting, step))
                    found[setting].append({"step": step, **self._of_attacked(stage, attacked)})
            run.save_checkpoint(i + 1, {}, {"found": found})
        return {"curves": self._from_start(stage, found)}, []

    def _of_attacked(self, stage: Stage, attacked: nn.Module) -> dict[str, float]:
        """Return an attacked model's performance by a stage's metric; FloatingPointError if it is not finite."""
        measures = self.domains.measures(attacked, *_metric_of(stage.config))
        if not all(map(math.isfinite, measures.values())):
            raise FloatingPointError("the attack has diverged")
        return measures

    def _from_start(self, stage: Stage, found: dict[str, Any]) -> dict[str, Any]:
        """Return the curves of an attack with the performance before it."""
        before = {"step": 0, **self._result(stage.parents["before"])["measures"]}
        return {setting: [before, *curve] for setting, curve in found.items()}

    def _distance(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> tuple[dict[str, Any], list[str]]:
        """Measure how far a model is from the reference model; None where their weights have other shapes."""
        run.load_checkpoint()  # finds none
        model, original = (self._load(stage.parents[name]) for name in ("model", "reference"))
        if [p.shape for p in model.parameters()] != [p.shape for p in original.parameters()]:
            return {"distance": None, "barrier": None}, []
        retain = self.domains.documents("retain", stage.config["documents"])  # type: ignore[arg-type]
        between = barrier(model, original, lambda mixed: evaluate(mixed, retain).mean())
        return {"distance": weight_distance(model, original), "barrier": between}, []

    def _check_teacher(self, stage: Stage) -> None:
        """Raise UserError if the teacher of a distillation has not forgotten, unless the options allow it."""
        teacher, reference = stage.parents["teacher"], stage.parents["reference"]
        if teacher.kind in TEACHERS and not self.command.allow_weak_teacher:
            stages = (self.measurer.measure(of, self.command.metric[0]) for of in (teacher, reference))
            made, before = map(self._result, stages)
            check_teacher(made["measures"], before["measures"], self.ignorance())

    def ignorance(self) -> float:
        """Return the main metric of a model that knows nothing."""
        metric = self.domains.metric(self.command.metric[0], self.command.test_documents)
        return metric.ignorance(self.text.tokenizer)

    def stop_rule(self, settings: Distil) -> StopRule:
        """Return when the retain performance of a student is good enough."""
        higher = self.domains.metric(stop_metric(self.command), settings.documents).higher_is_better
        return StopRule(settings.within or 0.0, settings.relative, higher, settings.every, settings.least)

    def _load(self, stage: Stage) -> nn.Module:
        self._result(stage)
        return load_model(str(stage.path(self.root) / MODEL)).to(self.command.device)

    def _result(self, stage: Stage) -> dict[str, Any]:
        """The result of a finished stage; UserError if it is not finished."""
        result = stage.result(self.root)
        if result is None:
            raise UserError(f"the stage {str(stage.path(self.root))!r} is not finished: run the study again")
        return result

    def _new(self, seed: int, name: str) -> nn.Module:
        return make_model(self.command, self.text.tokenizer, derive_seed(seed, name)).to(self.command.device)

    def _cost(
        self, model: nn.Module, steps: int, source: Batches | ForgetAndRetain, factor: float = 1.0
    ) -> dict[str, Any]:
        tokens = round(steps * source.tokens_per_step)
        return {"steps": steps, "tokens": tokens, "flops": factor * training_flops(model, self.command.length) * tokens}


def check_given(command: UndoOptions, text: Text, folder: str) -> None:
    """Raise ValueError or OSError if a teacher made elsewhere does not fit the study. Its weights are not read."""
    theirs, ours = load_tokenizer(folder), text.tokenizer
    if any(getattr(theirs, name) != getattr(ours, name) for name in ("bos_token_id", "eos_token_id")) or (
        theirs.get_vocab() != ours.get_vocab()
    ):
        raise ValueError(f"the teacher in {folder!r} has another tokenizer than the corpus: give its --tokenizer")
    teacher = outline(folder)
    check_fits(command, ours, teacher, folder)
    if "new" in command.students and command.model in PRESETS:
        with torch.device("meta"):
            check_vocabulary(build_model(command.model, ours, 0), teacher)


def _later(on_step: OnStep, done: int, step: int) -> None:
    """Report a step of an attack at a later learning rate."""
    on_step(done + step)


def _metric_of(config: Mapping[str, Any]) -> tuple[str, int]:
    """Return a metric, and on how many documents it is measured."""
    return config["metric"], config.get("documents", 0)


def _place(setting: str, step: int) -> str:
    """Return where an attack's stage keeps an attacked model."""
    return f"{ATTACKED}/{setting}/{step}"


def _checkpoint(run: RunDirectory) -> dict[str, Any]:
    """Return what an interrupted stage had found, by the attempts of an attack."""
    checkpoint = run.load_checkpoint()
    return {} if checkpoint is None else checkpoint.meta["found"]  # type: ignore[no-any-return]


def check_teacher(measures: Mapping[str, float], before: Mapping[str, float], ignorance: float) -> None:
    """Raise UserError for a teacher that has forgotten nothing, or everything."""
    forget, retain = ((before[kind], measures[kind]) for kind in ("forget", "retain"))
    try:
        check_suppression(forget, retain, ignorance=ignorance)
    except ValueError as error:  # also where there was nothing to forget
        raise UserError(f"{error}; or continue with --allow-weak-teacher") from None
