"""The stages of ``routed-rl undo``: what each depends on, and how it is done."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from experiments.errors import UserError
from experiments.language import Text, files_identity, make_model
from experiments.undo_commands import Undo
from routed_rl.lm import (
    Batches,
    Training,
    evaluate,
    exact_match,
    load_model,
    save_model,
    train,
    training_flops,
)
from routed_rl.runs import RunDirectory, Stage, derive_seed, finish_stage
from routed_rl.unlearning import (
    SUPPRESSORS,
    ForgetAndRetain,
    StopRule,
    check_suppression,
    distil,
    relearn,
    shrink_and_perturb,
    weight_distance,
)

MODEL = "model"
FILES = (f"{MODEL}/config.json", f"{MODEL}/model.safetensors")
"""What a stage that makes a model leaves for those after it."""
STAGES = "stages"
BETAS_AT = 0.6
"""Further betas are tried at the alpha that is nearest to this, which UNDO recommends."""
SUPPRESSED_ROWS = 64
"""Rows of each kind in a step of suppression."""
TEACHER_AND_STUDENT = 4 / 3
"""Cost of a step of distillation, in steps of training: a forward pass more for every forward and backward one."""
Measures = dict[str, float]


@dataclass(frozen=True, eq=False)
class Member:
    """A model of the study: what it is called, the stage that makes it and the one that attacks it."""

    model: str
    seed: int
    stage: Stage
    attack: Stage
    suppressor: str | None = None
    strength: float | None = None
    labelled: float | None = None
    alpha: float | None = None
    beta: float | None = None

    @property
    def name(self) -> str:
        """What it is called in tables and figures."""
        parts = [self.model, self.suppressor]
        if self.alpha is not None:
            parts += [f"α {self.alpha:g}", f"β {self.beta:g}"]
        if self.strength not in (None, 1.0):
            parts.append(f"strength {self.strength:g}")
        if self.labelled not in (None, 1.0):
            parts.append(f"{self.labelled:.1%} labelled")
        return ", ".join(part for part in parts if part)

    def keys(self) -> dict[str, Any]:
        """Its columns in the table of results."""
        keys = {field.name: getattr(self, field.name) for field in fields(self)}
        del keys["stage"], keys["attack"]
        return {"name": self.name, **keys}


def members(command: Undo, text: Text) -> list[Member]:
    """All models of a study, each after those that it goes on from.

    The first suppressor, with the first share of labels and at strength 1, is the main one: its teacher alone is
    noised, and in its stead alone there are others with fewer labels or of another strength.
    """
    names = ("test_documents", "length", "metric", "answer", "precision", "batch_size")
    common = {name: getattr(command, name) for name in names}
    common |= {"text": text.digest, "model": files_identity(command)["model"]}
    distilled = {"distil": asdict(command.distil), "stops": True}
    pretrained = {"pretrain": asdict(command.pretrain)}
    main_beta, *other_betas = command.betas
    noises = [(alpha, main_beta) for alpha in command.alphas]
    noises += [(min(command.alphas, key=lambda alpha: abs(alpha - BETAS_AT)), beta) for beta in other_betas]
    teachers = [(method, 1.0, command.labelled[0]) for method in command.suppress]
    teachers += [(command.suppress[0], 1.0, share) for share in command.labelled[1:]]
    teachers += [(command.suppress[0], strength, command.labelled[0]) for strength in command.strengths]
    found: list[Member] = []

    def add(
        model: str, seed: int, kind: str, config: Mapping[str, Any], parents: Mapping[str, Stage], **keys: Any
    ) -> Stage:
        stage = Stage(kind, {**common, **config}, seed, parents)
        attack = Stage("attack", {**common, "relearn": asdict(command.relearn)}, seed, {"model": stage})
        found.append(Member(model, seed, stage, attack, **keys))
        return stage

    for seed in range(command.first_seed, command.first_seed + command.seeds):
        reference = add("reference", seed, "pretrain", {**pretrained, "left_out": 0.0}, {})
        if command.filtered:
            filtered = add("filtered", seed, "pretrain", {**pretrained, "left_out": 1.0}, {})
            for share in command.labelled[1:]:
                add("filtered", seed, "pretrain", {**pretrained, "left_out": share}, {}, labelled=share)
        for method, strength, share in teachers:
            keys = {"suppressor": method, "strength": strength, "labelled": share}
            settings = {"settings": asdict(SUPPRESSORS[method]()), "recipe": asdict(_recipe(method, strength))}
            config = {"method": method, "labelled": share, **settings}
            teacher = {"teacher": add("suppressed", seed, "suppress", config, {"reference": reference}, **keys)}
            if "new" in command.students:
                add("distilled", seed, "distil", {**distilled, "student": "new"}, teacher, **keys)
            if "noised" in command.students and (method, strength, share) == teachers[0]:
                for alpha, beta in noises:
                    noise = {"alpha": alpha, "beta": beta}
                    add("undo", seed, "distil", {**distilled, "student": "noised", **noise}, teacher, **keys, **noise)
        if command.oracle and command.filtered:
            parents = {"teacher": filtered}
            matched = {**distilled, "stops": False}
            add("matched, new", seed, "distil", {**matched, "student": "new"}, parents)
            slower = {**matched["distil"], "learning_rate": command.distil.learning_rate / 2}
            matched |= {"distil": slower, "student": "reference"}
            add("matched, reference", seed, "distil", matched, {**parents, "reference": reference})
    return found


def _recipe(method: str, strength: float) -> Training:
    """How a suppressor is trained, for so many times the usual steps."""
    recipe = SUPPRESSORS[method]().recipe
    return replace(recipe, steps=max(round(strength * recipe.steps), 1))


def total_steps(stage: Stage, command: Undo) -> int:
    """How many gradient steps a stage has at most."""
    if stage.kind == "attack":
        return command.relearn.steps * len(command.relearn.learning_rates)
    if stage.kind == "suppress":
        return stage.config["recipe"]["steps"]  # type: ignore[index,call-overload,no-any-return]
    return (command.pretrain if stage.kind == "pretrain" else command.distil).steps


class Domains:
    """A corpus divided into what is trained on, with and without labels, and what is measured.

    Attributes:
        retain, forget: training documents of each kind.
        mixture: both, those to be forgotten so often that they are about as many as the others.

    Raises:
        ValueError: if a part has no documents.
    """

    def __init__(self, command: Undo, text: Text) -> None:
        self.command, self.text, corpus = command, text, text.corpus
        self.retain, self.forget = (corpus.documents("train", kind) for kind in ("retain", "forget"))
        self._repeats = max(round(len(self.retain) / len(self.forget)), 1)
        self.mixture = self._mixture(self.forget)
        order = np.random.default_rng(derive_seed(0, "measured"))
        self.measured = {}
        for kind, trained in (("retain", self.retain), ("forget", self.forget)):
            # Without a share for validation, what is measured is what has been trained on.
            documents = corpus.documents("validation", kind) if command.validation else trained
            documents = order.permutation(documents)[: command.test_documents]
            rows = int(np.diff(corpus.starts)[documents].max()) + 1
            self.measured[kind] = Batches(corpus, documents, rows if command.metric == "answers" else command.length)

    def labelled(self, share: float, seed: int) -> np.ndarray:
        """Documents to be forgotten that somebody has labelled."""
        return self.forget[self.text.corpus.labelled(share, seed=derive_seed(seed, "labels"))[self.forget]]

    def without(self, share: float, seed: int) -> np.ndarray:
        """The mixture, less the documents that are labelled where so many are."""
        return self._mixture(np.setdiff1d(self.forget, self.labelled(share, seed)))

    def _mixture(self, forget: np.ndarray) -> np.ndarray:
        return np.concatenate([self.retain, np.repeat(forget, self._repeats)])

    def batches(self, documents: np.ndarray, batch_size: int, seed: int) -> Batches:
        """Rows of documents in a new order each epoch; few of them are repeated until they fill a batch."""
        corpus, length = self.text.corpus, self.command.length
        tokens = int(np.diff(corpus.starts)[documents].sum())
        repeats = -(-batch_size * (length - 1) // max(tokens, 1))
        return Batches(corpus, np.tile(documents, max(repeats, 1)), length, batch_size, seed)

    def measure(self, model: nn.Module) -> Measures:
        """How much a model knows of what is retained, and of what is forgotten."""
        if self.command.metric == "answers":
            return {kind: exact_match(model, batches, self.command.answer) for kind, batches in self.measured.items()}
        return {kind: evaluate(model, batches).mean() for kind, batches in self.measured.items()}

    def attacker(self, seed: int) -> Batches:
        """What the attack trains on: documents to be forgotten, and as many retained ones as the options say."""
        relearning = self.command.relearn
        order = np.random.default_rng(derive_seed(seed, "attacker"))
        forget = order.permutation(self.forget)[: relearning.examples]
        share = relearning.retain_share
        retain = order.choice(self.retain, round(len(forget) * share / (1 - share)))
        return self.batches(np.concatenate([forget, retain]), relearning.batch_size, derive_seed(seed, "attack"))


class Worker:
    """Does stages, one after the other."""

    def __init__(self, command: Undo, text: Text, out: Path) -> None:
        self.command, self.text, self.root = command, text, out / STAGES
        self.domains = Domains(command, text)

    def do(self, stage: Stage, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Do a stage, or what is left of it; its parents are finished."""
        makers = {"pretrain": self._pretrain, "suppress": self._suppress, "distil": self._distil}
        with stage.open(self.root) as run:
            if run.finished:
                return
            if stage.kind == "attack":
                finish_stage(run, self._attack(stage, run, on_step))
                return
            model, result = makers[stage.kind](stage, run, on_step)
            save_model(model, self.text.tokenizer, run.path / MODEL)
            finish_stage(run, {"measures": self.domains.measure(model), **result}, FILES)

    def _load(self, stage: Stage) -> nn.Module:
        if stage.result(self.root) is None:
            raise UserError(f"{str(stage.path(self.root))!r} is not finished")
        return load_model(str(stage.path(self.root) / MODEL)).to(self.command.device)

    def _new(self, seed: int, name: str) -> nn.Module:
        return make_model(self.command, self.text.tokenizer, derive_seed(seed, name)).to(self.command.device)

    def _pretrain(
        self, stage: Stage, run: RunDirectory, on_step: Callable[[int], None]
    ) -> tuple[nn.Module, dict[str, Any]]:
        command, domains = self.command, self.domains
        model = self._new(stage.seed, "model")
        documents = domains.without(stage.config["left_out"], stage.seed)  # type: ignore[arg-type]
        source = domains.batches(documents, command.batch_size, derive_seed(stage.seed, "order"))
        training = Training(**asdict(command.pretrain), accumulate=command.accumulate, precision=command.precision)
        train(model, source, training, seed=derive_seed(stage.seed, "train"), run=run, on_step=on_step)
        return model, self._cost(model, training.steps, command.batch_size)

    def _suppress(
        self, stage: Stage, run: RunDirectory, on_step: Callable[[int], None]
    ) -> tuple[nn.Module, dict[str, Any]]:
        command, domains = self.command, self.domains
        model = self._load(stage.parents["reference"])
        method = SUPPRESSORS[stage.config["method"]]()  # type: ignore[index]
        marked = domains.labelled(stage.config["labelled"], stage.seed)  # type: ignore[arg-type]
        rows = SUPPRESSED_ROWS
        source = ForgetAndRetain(
            domains.batches(marked, rows, derive_seed(stage.seed, "forget")),
            domains.batches(domains.retain, rows, derive_seed(stage.seed, "retain")),
        )
        objective = method.objective(model, derive_seed(stage.seed, "suppress"))
        recipe: dict[str, Any] = dict(stage.config["recipe"])  # type: ignore[arg-type]
        training = Training(**recipe | {"precision": command.precision})
        train(
            model,
            source,
            training,
            objective,
            seed=derive_seed(stage.seed, "suppress"),
            gradient=method.gradient,
            run=run,
            on_step=on_step,
        )
        model.requires_grad_(True)
        self._check_teacher(stage, model)
        return model, {"labelled_documents": len(marked), **self._cost(model, training.steps, 2 * rows)}

    def _check_teacher(self, stage: Stage, model: nn.Module) -> None:
        """UserError for a teacher that knows as much as before, or nothing at all, unless that is allowed."""
        before = stage.parents["reference"].result(self.root)["measures"]  # type: ignore[index]
        after = self.domains.measure(model)
        ignorance = 0.0 if self.command.metric == "answers" else math.log(len(self.text.tokenizer))
        changes = {kind: (before[kind], after[kind]) for kind in ("forget", "retain")}
        try:
            check_suppression(**changes, ignorance=ignorance)
        except ValueError as error:  # also where there was nothing to forget
            if not self.command.allow_weak_teacher:
                raise UserError(f"{error}; or go on with --allow-weak-teacher") from None
            warnings.warn(str(error), stacklevel=2)

    def _distil(
        self, stage: Stage, run: RunDirectory, on_step: Callable[[int], None]
    ) -> tuple[nn.Module, dict[str, Any]]:
        command, domains, settings = self.command, self.domains, self.command.distil
        teacher = self._load(stage.parents["teacher"])
        if stage.config["student"] == "new":
            student = self._new(stage.seed, "student")
        elif stage.config["student"] == "reference":
            student = self._load(stage.parents["reference"])
        else:
            student = copy.deepcopy(teacher)
            noise = (stage.config["alpha"], stage.config["beta"], derive_seed(stage.seed, "noise"))
            shrink_and_perturb(student, *noise)  # type: ignore[arg-type]
        rule = StopRule(settings.within, settings.relative, command.metric == "answers", settings.every)
        source = domains.batches(domains.mixture, command.batch_size, derive_seed(stage.seed, "distil"))
        training = Training(
            settings.steps,
            stage.config["distil"]["learning_rate"],  # type: ignore[index,call-overload]
            settings.warmup,
            weight_decay=0.0,
            accumulate=command.accumulate,
            precision=command.precision,
        )
        found = distil(
            student,
            teacher,
            source,
            training,
            (lambda model: domains.measure(model)["retain"]) if stage.config["stops"] else None,
            rule,
            hidden_weight=settings.hidden_weight,
            seed=derive_seed(stage.seed, "train"),
            run=run,
            on_step=on_step,
        )
        cost = self._cost(student, found.steps, command.batch_size, TEACHER_AND_STUDENT)
        return student, {"reached": found.reached, **cost}

    def _attack(self, stage: Stage, run: RunDirectory, on_step: Callable[[int], None]) -> dict[str, Any]:
        """Curves by learning rate, each of which is kept as soon as it is there."""
        relearning, model = self.command.relearn, self._load(stage.parents["model"])
        source = self.domains.attacker(stage.seed)
        checkpoint = run.load_checkpoint()
        curves: dict[str, Any] = {} if checkpoint is None else checkpoint.meta["curves"]
        for i, rate in enumerate(relearning.learning_rates):
            if repr(rate) not in curves:
                since = time.perf_counter()
                curves[repr(rate)] = relearn(
                    model,
                    source,
                    relearning.steps,
                    rate,
                    (0, *relearning.measured),
                    self.domains.measure,
                    seed=derive_seed(stage.seed, "attack"),
                    on_step=lambda step, done=i: on_step(done * relearning.steps + step),
                )
                run.timings.append({"step": (i + 1) * relearning.steps, "seconds": time.perf_counter() - since})
                run.metrics.append(
                    {"step": (i + 1) * relearning.steps, "learning_rate": rate, **curves[repr(rate)][-1]}
                )
                run.save_checkpoint(i + 1, {}, {"curves": curves})
        reference = self._reference(stage.parents["model"])
        return {
            "curves": curves,
            "distance": 0.0 if reference is None else weight_distance(model, self._load(reference)),
        }

    def _reference(self, stage: Stage) -> Stage | None:
        """The pretrained model that a stage's goes back to, if it is another."""
        while stage.parents:
            stage = stage.parents.get("reference") or stage.parents["teacher"]
        return stage

    def _cost(self, model: nn.Module, steps: int, rows: int, factor: float = 1.0) -> dict[str, Any]:
        tokens = steps * rows * self.command.length
        flops = factor * training_flops(model, self.command.length) * tokens
        return {"steps": steps, "tokens": tokens, "flops": flops}
