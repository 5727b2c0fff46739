"""The work of each stage of an UNDO study."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from routed_rl.errors import UserError, user_input
from routed_rl.lm import (
    PRESETS,
    Batches,
    Training,
    WholeDocuments,
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
from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.lm.processes import agreed, rank
from routed_rl.lm.suppressors.suppressor import Suppressor
from routed_rl.options.undo import Distil, UndoOptions
from routed_rl.runs import RunDirectory, Stage, derive_seed, finish_stage
from routed_rl.unlearning.copies import TrainedCopy, kept
from routed_rl.unlearning.distillation import StopRule, check_vocabulary, distil
from routed_rl.unlearning.guard import check_suppression
from routed_rl.unlearning.noise import matrices, most_changed, shrink_and_perturb
from routed_rl.unlearning.tuning import sweep
from routed_rl.unlearning.undo_study.measurements import (
    MODEL,
    Measured,
    Measurements,
    OnStep,
    found_so_far,
    later,
    metric_of,
)
from routed_rl.unlearning.undo_study.measuring import ATTACK, CURVES, DISTANCE, MEASURE, Measurer
from routed_rl.unlearning.undo_study.members import (
    given_filtered,
    given_teachers,
    make_suppressor,
    stop_metric,
    suppression_parts,
    training_of,
    trainings,
    with_strength,
)

TEACHERS = ("suppress", "given")
"""Kinds of stages whose models are suppressed models."""
FILES = (f"{MODEL}/config.json", f"{MODEL}/model.safetensors")
"""Files of a model that later stages read."""
Made = tuple[nn.Module, dict[str, Any]]
"""A model, and facts about its training."""


class Worker(Measurements):
    """Does stages, one after the other, in the directory of all stages."""

    def __init__(self, command: UndoOptions, text: Text, root: Path) -> None:
        super().__init__(command, text, root)
        self.measurer = Measurer(command, text)

    def do(self, stage: Stage, on_step: OnStep = lambda step: None) -> None:
        """Do a stage, or the rest of an interrupted stage. Its parents are finished.

        Several processes may do a stage of a kind in :data:`TRAINED` together. The first one writes.

        Raises:
            FloatingPointError: if a loss or a metric is not finite.
            UserError: for a teacher that has not forgotten, unless the options allow it.
        """
        makers: dict[str, Callable[..., Made]] = {
            "pretrain": self._pretrain,
            "suppress": self._suppress,
            "distil": self._distil,
            "given": self._given,
            "filtered": self._given,
        }
        measurers: dict[str, Callable[..., Measured]] = {
            "tune": self._tune,
            MEASURE: self.measure,
            ATTACK: self.attack,
            CURVES: self.curves,
            DISTANCE: self.distance,
        }
        if stage.kind == "distil":
            self._check_teacher(stage)
        with stage.open(self.root) if rank() == 0 else nullcontext() as run:
            if agreed(run is not None and run.finished):
                return
            if stage.kind in measurers:
                result, files = measurers[stage.kind](stage, run, on_step)
            else:
                model, result = makers[stage.kind](stage, run, on_step)
                files = [*FILES]
            if run is None:
                return
            if stage.kind in makers:
                save_model(model, self.text.tokenizer, run.path / MODEL)
            finish_stage(run, result, files)

    def _pretrain(self, stage: Stage, run: RunDirectory | None, on_step: OnStep) -> Made:
        copied = self._copied(self._new(stage.seed, "model"), None)
        documents = self.domains.without(float(stage.config["left_out"]), stage.seed)  # type: ignore[arg-type]
        order = derive_seed(stage.seed, "order")
        source = self.domains.batches(copied.model, documents, self.command.batch_size, order)
        training = training_of(stage, self.command.accumulate)
        seed = derive_seed(stage.seed, "train")
        copied.begin(seed)
        train(copied.distributed, source, copied.training(training), seed=seed, run=run, on_step=on_step)
        made = copied.result()
        return made, self._cost(made, training.steps, source)

    def _suppress(self, stage: Stage, run: RunDirectory | None, on_step: OnStep) -> Made:
        config: Mapping[str, Any] = stage.config
        rows, seed = config["rows"], stage.seed
        model = self.load(stage.parents["reference"], None)
        method, _ = make_suppressor(self.command.settings, config["method"])
        training = training_of(stage, suppression_parts(self.command, method.alternatives is not None))
        marked, retained = self.domains.labelled(config["labelled"], seed)
        tuning: dict[str, Any] = {}
        if "tuned" in stage.parents:
            best, tuning = self._chosen(stage.parents["tuned"], config["keep"])
            method, training = tuned(method, training, best)
            training = replace(training, **with_strength({"steps": training.steps}, config.get("strength", 1.0)))
        source = self._source(model, method, config["method"], (marked, retained), rows, seed)
        made = self._suppressed(model, method, training, source, seed, run, lambda step, _: on_step(step))
        return made, {
            "labelled_documents": len(marked),
            **self._cost(model, training.steps, source, method.cost),
            **tuning,
        }

    def _chosen(self, stage: Stage, keep: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the best settings that a stage of the kind "tune" has tried, and facts about them."""
        tried = self.result(stage)

        def known(settings: Mapping[str, Any], steps: Sequence[int]) -> dict[int, dict[str, float]]:
            return {int(count): losses for count, losses in tried["found"][_name_of(settings, steps)].items()}

        ignorance = math.log(len(self.text.tokenizer))
        frame, best = sweep(trainings(stage), known, tried["before"], ignorance, keep)
        facts = {"settings": best, "kept": bool(frame.kept.iloc[0]), "steps": tried["steps"], "flops": tried["flops"]}
        return best, {f"tuning_{name}": value for name, value in facts.items()}

    def _source(
        self,
        model: nn.Module,
        method: Suppressor,
        name: str,
        documents: tuple[np.ndarray, np.ndarray],
        rows: int,
        seed: int,
    ) -> ForgetAndRetain:
        """Return batches of suppression: of documents with the label "forget", and of those that are retained."""
        pool, others = method.alternatives, None
        if pool is not None:
            with user_input():
                others = self.domains.alternatives(name, pool, documents[0], seed)
        batches = partial(self.domains.batches, model, pack=pool is None)
        return ForgetAndRetain(
            batches(documents[0], rows, derive_seed(seed, "forget"), labelled=True),
            batches(documents[1], rows, derive_seed(seed, "retain")),
            others,
        )

    def _suppressed(
        self,
        model: nn.Module,
        method: Suppressor,
        training: Training,
        source: ForgetAndRetain,
        seed: int,
        run: RunDirectory | None,
        after: Callable[[int, nn.Module], None],
    ) -> nn.Module:
        """Return a copy of a model in which a method has suppressed what the model knows.

        Args:
            after: called after each step, with its number from 0 and the copy.
        """
        seed, copied = derive_seed(seed, "suppress"), self._copied(model, self.command.rank)
        with kept(model):
            with user_input():
                batches = (source.batch(step) for step in range(training.steps))
                objective = method.objective(copied.model, seed, original=model, batches=batches)
                copied.begin(seed)
            train(
                copied.distributed,
                source,
                copied.training(training),
                objective,
                seed=seed,
                gradient=method.gradient,
                run=run,
                on_step=lambda step: after(step, copied.model),
            )
        result: nn.Module = copied.result()
        return result

    def _copied(self, model: nn.Module, rank: int | None, changed: bool = False) -> TrainedCopy:
        """Return a copy of a model that is to learn, as the options say."""
        options = {"master_weights": self.command.master_weights, "gradient_checkpointing": self.command.checkpointing}
        with user_input():
            return TrainedCopy(model, rank, **options, changed=changed, shard=True)

    def _tune(self, stage: Stage, run: RunDirectory | None, on_step: OnStep) -> Measured:
        """Try settings of a suppressor, on documents on which no model is measured."""
        config: Mapping[str, Any] = stage.config
        model, seed = self.load(stage.parents["reference"], None), stage.seed
        method, _ = make_suppressor(self.command.settings, config["method"])
        usual = training_of(stage, suppression_parts(self.command, method.alternatives is not None))
        marked, retained, held_out = self.domains.tuning(config["labelled"], seed)
        source = self._source(model, method, config["method"], (marked, retained), config["rows"], seed)
        measured = {
            name: WholeDocuments(self.domains.corpus, of) for name, of in (("forget", marked), ("retain", held_out))
        }
        found, begun = found_so_far(run), 0
        for settings, steps in trainings(stage):
            since, begun = begun, begun + max(steps)
            if (name := _name_of(settings, steps)) in found:
                continue
            seconds = time.perf_counter()
            seen: dict[str, dict[str, float]] = {}
            after = partial(self._look, measured, steps, seen, partial(later, on_step, since))
            with suppress(FloatingPointError):  # it has diverged
                mine = tuned(method, usual, {**settings, "steps": max(steps)})
                self._suppressed(model, *mine, source, seed, None, after)
            found[name] = seen
            if run is None:
                continue
            run.timings.append({"step": begun, "seconds": time.perf_counter() - seconds})
            last = seen.get(str(max(steps)), dict.fromkeys(measured, math.nan))
            run.metrics.append({"step": begun, **settings, **last})
            run.save_checkpoint(begun, {}, {"found": found})
        before = {name: evaluate(model, of).mean() for name, of in measured.items()}
        return {"before": before, "found": found, **self._cost(model, begun, source, method.cost)}, []

    @staticmethod
    def _look(
        measured: Mapping[str, WholeDocuments],
        steps: Sequence[int],
        seen: dict[str, dict[str, float]],
        on_step: OnStep,
        step: int,
        copied: nn.Module,
    ) -> None:
        """Measure a trial after some numbers of steps; FloatingPointError if it has diverged."""
        if step + 1 in steps:
            losses = {name: evaluate(copied, of).mean() for name, of in measured.items()}
            if not all(map(math.isfinite, losses.values())):
                raise FloatingPointError("the trial has diverged")
            seen[str(step + 1)] = losses
        on_step(step)

    def _given(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> Made:
        run.load_checkpoint()  # finds none, because nothing is trained here
        if stage.kind == "filtered":
            folder = given_filtered(self.command, stage.seed)
        else:
            folders = given_teachers(self.command, stage.seed).values()
            folder = next(folder for folder in folders if model_identity(folder) == stage.config["given"])
        with user_input():
            check_given(self.command, self.text, folder)
            model = load_model(folder, None).to(self.command.device)
        per_token = training_flops(model, self.command.length)
        unknown = dict.fromkeys(("labelled_documents", "steps", "tokens", "flops"))
        return model, {**unknown, "flops_per_token": per_token}

    def _distil(self, stage: Stage, run: RunDirectory | None, on_step: OnStep) -> Made:
        config: Mapping[str, Any] = stage.config
        settings, stops = Distil(**config["distil"]), config["stops"]
        teacher, reference = stage.parents["teacher"], stage.parents["reference"]
        taught = self.load(teacher, None)
        student = taught
        if config["student"] != "noised":
            student = self._new(stage.seed, "student") if config["student"] == "new" else self.load(reference, None)
        copied = self._copied(student, self.command.rank, changed=True)
        if config["student"] == "noised":
            with user_input():
                share = config.get("localised", 1.0)
                mask = most_changed(self.load(reference, None), taught, share) if share < 1 else None
                touch = {} if config.get("touched", "all") == "all" else {"touch": matrices}
                noise = config["alpha"], config["beta"], derive_seed(stage.seed, "noise")
                shrink_and_perturb(copied.model, *noise, **touch, mask=mask)
        order = derive_seed(stage.seed, "distil")
        weaker = copied.model if keeps_apart(taught) else taught  # both must keep packed documents apart
        source = self.domains.batches(weaker, self.domains.mixture, self.command.batch_size, order)
        copied.begin(derive_seed(stage.seed, "adapters"))
        found = distil(
            copied.distributed,
            taught,
            source,
            copied.training(training_of(stage, self.command.accumulate)),
            partial(self._retained, *metric_of(stops)) if stops else None,
            self.stop_rule(settings),
            hidden_weight=settings.hidden_weight,
            seed=derive_seed(stage.seed, "train"),
            run=run,
            on_step=on_step,
        )
        made = copied.result()
        stopped = {"reached": found.reached, "early": found.early} if stops else {"reached": None}
        return made, {**stopped, **self._cost(made, found.steps, source, 1 + FORWARD_PASS)}

    def _retained(self, metric: str, documents: int, model: nn.Module) -> float:
        return self.domains.measure(model, metric, "retain", documents)

    def _check_teacher(self, stage: Stage) -> None:
        """Raise UserError if the teacher of a distillation has not forgotten, unless the options allow it."""
        teacher, reference = stage.parents["teacher"], stage.parents["reference"]
        if teacher.kind in TEACHERS and not self.command.allow_weak_teacher:
            stages = (self.measurer.measure(of, self.measurer.main) for of in (teacher, reference))
            made, before = map(self.result, stages)
            check_teacher(made["measures"], before["measures"], self.ignorance())

    def ignorance(self) -> float:
        """Return the main metric of a model that knows nothing."""
        metric = self.domains.metric(self.command.metric[0], self.command.test_documents)
        return metric.ignorance(self.text.tokenizer)

    def stop_rule(self, settings: Distil) -> StopRule:
        """Return when the retain performance of a student is good enough."""
        higher = self.domains.metric(stop_metric(self.command), settings.documents).higher_is_better
        return StopRule(settings.within or 0.0, settings.relative, higher, settings.every, settings.least)

    def _new(self, seed: int, name: str) -> nn.Module:
        model = make_model(self.command, self.text.tokenizer, derive_seed(seed, name), None)
        return model.to(self.command.device)

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
        raise ValueError(f"the model in {folder!r} has another tokenizer than the corpus: give its --tokenizer")
    teacher = outline(folder)
    check_fits(command, ours, teacher, folder)
    if "new" in command.students and command.model in PRESETS:
        with torch.device("meta"):
            check_vocabulary(build_model(command.model, ours, 0), teacher)


def _name_of(settings: Mapping[str, Any], steps: Sequence[int]) -> str:
    """Return the name of a training in the results of a stage of the kind "tune"."""
    return json.dumps([settings, *steps], sort_keys=True)


def tuned(method: Suppressor, training: Training, settings: Mapping[str, Any]) -> tuple[Suppressor, Training]:
    """Return a suppressor and its training with other settings."""
    recipe = {name: settings[name] for name in ("steps", "learning_rate")}
    own = {name: value for name, value in settings.items() if name not in recipe}
    return replace(method, **own), replace(training, **recipe)


def check_teacher(measures: Mapping[str, float], before: Mapping[str, float], ignorance: float) -> None:
    """Raise UserError for a teacher that has forgotten nothing, or everything."""
    forget, retain = ((before[kind], measures[kind]) for kind in ("forget", "retain"))
    try:
        check_suppression(forget, retain, ignorance=ignorance)
    except ValueError as error:  # also where there was nothing to forget
        raise UserError(f"{error}; or continue with --allow-weak-teacher") from None
