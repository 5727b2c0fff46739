"""The work of each stage of an UNDO study."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
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
from routed_rl.options.undo import Distil, Relearn, UndoOptions
from routed_rl.runs import RunDirectory, Stage, derive_seed, finish_stage
from routed_rl.unlearning.attacks import barrier, quantised, relearn, weight_distance
from routed_rl.unlearning.distillation import StopRule, check_vocabulary, distil
from routed_rl.unlearning.guard import check_suppression
from routed_rl.unlearning.noise import matrices, most_changed, shrink_and_perturb
from routed_rl.unlearning.undo_study.domains import Domains, higher_is_better
from routed_rl.unlearning.undo_study.members import (
    even_parts,
    given_teachers,
    make_suppressor,
    suppression_parts,
    training_of,
)

MODEL = "model"
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
        self.domains = Domains(command, text)

    def do(self, stage: Stage, on_step: OnStep = lambda step: None) -> None:
        """Do a stage, or the rest of an interrupted stage. Its parents are finished.

        Raises:
            FloatingPointError: if a loss or a metric is not finite.
            UserError: for a teacher that has not forgotten, unless the options allow it.
        """
        makers = {"pretrain": self._pretrain, "suppress": self._suppress, "given": self._given, "distil": self._distil}
        if stage.kind == "distil":
            self._check_teacher(stage)
        with stage.open(self.root) as run:
            if run.finished:
                return
            if stage.kind == "attack":
                finish_stage(run, self._attack(stage, run, on_step))
                return
            model, result = makers[stage.kind](stage, run, on_step)
            measures = self.domains.measures(model)
            if bad := [kind for kind, value in measures.items() if not math.isfinite(value)]:
                raise FloatingPointError(
                    f"after the stage {stage.kind} the {bad[0]} {self.command.metric} is {measures[bad[0]]}: lower the "
                    "learning rate"
                )
            save_model(model, self.text.tokenizer, run.path / MODEL)
            finish_stage(run, {"measures": measures, **result}, FILES)

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
        settings = Distil(**config["distil"])
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
            (lambda model: self.domains.measure(model, "retain")) if config["stops"] else None,
            stop_rule(self.command, settings),
            hidden_weight=settings.hidden_weight,
            seed=derive_seed(stage.seed, "train"),
            run=run,
            on_step=on_step,
        )
        cost = self._cost(student, found.steps, source, 1 + FORWARD_PASS)
        stopped = {"reached": found.reached, "early": found.early} if config["stops"] else {"reached": None}
        return student, {**stopped, **cost}

    def _attack(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> dict[str, Any]:
        """Attack a model: its curves by learning rate, saved one by one, and its distance from the reference."""
        relearning = Relearn(**{**stage.config["relearn"]})  # type: ignore[dict-item]
        model = self._load(stage.parents["model"])
        source = self.domains.attacker(model, stage.seed)
        checkpoint = run.load_checkpoint()
        curves: dict[str, Any] = {} if checkpoint is None else checkpoint.meta["curves"]
        for i, rate in enumerate(relearning.learning_rates):
            if repr(rate) in curves:
                continue
            since = time.perf_counter()
            found = relearn(
                model,
                source,
                relearning.steps,
                rate,
                relearning.measured,
                self.domains.measures,
                rank=relearning.rank,
                accumulate=even_parts(relearning.batch_size, self.command.accumulate),
                precision=self.command.precision,
                seed=derive_seed(stage.seed, "attack"),
                on_step=partial(_later, on_step, i * relearning.steps),
            )
            curves[repr(rate)] = [{"step": 0, **self._measures(stage.parents["model"])}, *found]
            done = (i + 1) * relearning.steps
            run.timings.append({"step": done, "seconds": time.perf_counter() - since})
            run.metrics.append({**curves[repr(rate)][-1], "step": done, "learning_rate": rate})
            run.save_checkpoint(i + 1, {}, {"curves": curves})
        retain, original = self.domains.measured["retain"], self._load(stage.parents["reference"])
        same = [p.shape for p in model.parameters()] == [p.shape for p in original.parameters()]
        return {
            "curves": curves,
            "distance": weight_distance(model, original) if same else None,
            "barrier": barrier(model, original, lambda between: evaluate(between, retain).mean()) if same else None,
            "quantised": {str(bits): self.domains.measure(quantised(model, bits), "forget") for bits in BITS},
        }

    def _check_teacher(self, stage: Stage) -> None:
        """Raise UserError if the teacher of a distillation has not forgotten, unless the options allow it."""
        teacher, reference = stage.parents["teacher"], stage.parents["reference"]
        if teacher.kind in TEACHERS and not self.command.allow_weak_teacher:
            check_teacher(self._measures(teacher), self._measures(reference), ignorance(self.command, self.text))

    def _load(self, stage: Stage) -> nn.Module:
        self._measures(stage)
        return load_model(str(stage.path(self.root) / MODEL)).to(self.command.device)

    def _measures(self, stage: Stage) -> dict[str, float]:
        """The metric of a finished stage's model, by kind; UserError if the stage is not finished."""
        result = stage.result(self.root)
        if result is None:
            raise UserError(f"the stage {str(stage.path(self.root))!r} is not finished: run the study again")
        return result["measures"]  # type: ignore[no-any-return]

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


def stop_rule(command: UndoOptions, settings: Distil) -> StopRule:
    """Return when the retain performance of a student is good enough."""
    higher = higher_is_better(command)
    return StopRule(settings.within or 0.0, settings.relative, higher, settings.every, settings.least)


def ignorance(command: UndoOptions, text: Text) -> float:
    """Return the metric of a model that knows nothing."""
    nothing = {"loss": math.log(len(text.tokenizer)), "lm-eval": command.lm_eval.chance}
    return nothing.get(command.metric, 0.0)


def check_teacher(measures: Mapping[str, float], before: Mapping[str, float], ignorance: float) -> None:
    """Raise UserError for a teacher that has forgotten nothing, or everything."""
    forget, retain = ((before[kind], measures[kind]) for kind in ("forget", "retain"))
    try:
        check_suppression(forget, retain, ignorance=ignorance)
    except ValueError as error:  # also where there was nothing to forget
        raise UserError(f"{error}; or continue with --allow-weak-teacher") from None
