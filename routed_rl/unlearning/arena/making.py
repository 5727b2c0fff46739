"""The models of an arena: trained, given, unlearned and distilled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import nn

from routed_rl.lm import (
    Batches,
    Training,
    ablate,
    blocks,
    build_model,
    expand,
    load_model,
    load_tokenizer,
    repair,
    route,
    save_model,
    text_corpus,
    train,
)
from routed_rl.lm.documents import Document
from routed_rl.lm.passes import FORWARD_PASS, counted
from routed_rl.lm.texts import row_length
from routed_rl.lm.tokenizers import train_tokenizer
from routed_rl.options.arena import ArenaOptions
from routed_rl.runs import Stage, derive_seed
from routed_rl.unlearning.arena.attacks import Victim
from routed_rl.unlearning.arena.entries import CHANGED, FULL, RETRAINED, ROUTED, SEED, UNLEARN, Arena
from routed_rl.unlearning.benchmarks.benchmark import wrong_answers
from routed_rl.unlearning.pipeline import undo, unlearn
from routed_rl.unlearning.procedures import Procedure

MODEL = "model"
"""Folder of a stage's model."""
BIAS = {"all": -math.inf, "own": 4.0}
"""The bias of :func:`~routed_rl.lm.token_weights` that routes these words; the second one is the published one."""
OnStep = Callable[[int], None]


class Maker:
    """Makes the models of stages, in the directory of all stages."""

    def __init__(self, arena: Arena, root: Any) -> None:
        self.arena, self.root = arena, root
        self._device = arena.options.device

    def load(self, stage: Stage) -> tuple[nn.Module, Any]:
        """Return the model of a finished stage, and its tokenizer."""
        folder = stage.path(self.root) / MODEL
        return load_model(str(folder), None).to(self._device), load_tokenizer(str(folder))

    def make(self, stage: Stage, on_step: OnStep) -> dict[str, Any]:
        """Make a stage's model, save it in the stage's directory, and return what it has cost.

        ``steps`` are gradient steps. ``cost`` is the number of rows that they train on; rows that are only read count a
        third. Models that are given have neither.
        """
        config: Mapping[str, Any] = stage.config
        if "given" in config:
            options = self.arena.options
            named = options.model if stage.kind == FULL else options.retrained
            assert named is not None
            name = named.replace(SEED, str(stage.seed))
            model, tokenizer, cost = load_model(name, None), load_tokenizer(name), {"steps": None, "cost": None}
            self.arena.chat.give(tokenizer)
        elif stage.kind in (FULL, RETRAINED):
            model, tokenizer, cost = self._learned(stage, on_step)
        elif stage.kind == ROUTED:
            model, tokenizer, cost = self._routed(stage, on_step)
        elif stage.kind == CHANGED:
            model, tokenizer, cost = self._changed(stage)
        elif stage.kind == UNLEARN:
            model, tokenizer, cost = self._unlearned(stage, on_step)
        else:
            model, tokenizer, cost = self._distilled(stage, on_step)
        save_model(model, tokenizer, stage.path(self.root) / MODEL)
        return cost

    def victim(self, model: nn.Module, tokenizer: Any, original: nn.Module | None, steps: int, seed: int) -> Victim:
        """Return what attackers of a model may use, under the options of the arena."""
        options, benchmark = self.arena.options, self.arena.benchmark
        known = (model, tokenizer, benchmark, original)
        return Victim(*known, options.batch_size, steps, seed, options.checkpointing, options.accumulate)

    def total(self, stage: Stage) -> int:
        """Return the maximum number of gradient steps of a stage that makes a model; 0 for a model that is given."""
        return total_steps(stage, self.arena.options)

    def _new(self, stage: Stage) -> tuple[nn.Module, Any]:
        """Return a model that has learned nothing, and its tokenizer."""
        recipe = self.arena.recipe
        texts = (Document(text) for text in self.arena.kind.documents(self.arena.benchmark))
        tokenizer = train_tokenizer(texts, recipe.vocabulary)
        return build_model(recipe.model, tokenizer, derive_seed(stage.seed, "model")).to(self._device), tokenizer

    def _learned(self, stage: Stage, on_step: OnStep) -> tuple[nn.Module, Any, dict[str, Any]]:
        recipe, (model, tokenizer) = self.arena.recipe, self._new(stage)
        corpus = text_corpus(tokenizer, self.arena.benchmark.forget, self.arena.benchmark.retain)
        kinds = ("retain",) if stage.kind == RETRAINED else ("forget", "retain")
        documents = np.concatenate([corpus.documents("train", kind) for kind in kinds])  # type: ignore[arg-type]
        order = derive_seed(stage.seed, "order")
        source = Batches(corpus, documents, row_length(corpus, model), recipe.batch_size, order)
        train(model, source, recipe.training, seed=derive_seed(stage.seed, "train"), on_step=on_step)
        steps = recipe.training.steps
        return model, tokenizer, {"steps": steps, "cost": float(steps * recipe.batch_size)}

    def _routed(self, stage: Stage, on_step: OnStep) -> tuple[nn.Module, Any, dict[str, Any]]:
        """Expand, route, ablate, repair. The cost is that of the repair: routing is how the model is trained."""
        recipe, benchmark, routing = self.arena.recipe, self.arena.benchmark, self.arena.options.routing
        model, tokenizer = self._new(stage)
        expansion = expand(model, range(len(blocks(model))), None, derive_seed(stage.seed, "units"))
        route(
            model,
            expansion,
            tokenizer,
            benchmark.forget,
            benchmark.retain,
            mode=routing.mode,
            bias=BIAS[routing.words],
            training=recipe.training,
            batch_size=recipe.batch_size,
            seed=stage.seed,
            progress=False,
            callback=lambda done, _: on_step(done - 1),
        )
        ablate(model, expansion)
        repaired = [0]
        model = repair(
            model,
            tokenizer,
            benchmark.retain,
            steps=routing.repair_steps,
            learning_rate=routing.repair_learning_rate,
            progress=False,
            callback=repaired.append,
        )
        half = len(benchmark.retain) / 2  # the other half is read
        return model, tokenizer, {"steps": recipe.training.steps, "cost": repaired[-1] * half * (1 + FORWARD_PASS)}

    def _unlearned(self, stage: Stage, on_step: OnStep) -> tuple[nn.Module, Any, dict[str, Any]]:
        config: Mapping[str, Any] = stage.config
        model, tokenizer = self.load(stage.parents["model"])
        method, recipe = self.arena.method(config["method"])
        with counted(model) as costs:
            made = unlearn(
                model,
                tokenizer,
                self.arena.benchmark.forget,
                self.arena.benchmark.retain,
                method,
                alternatives=wrong_answers(self.arena.benchmark) if method.alternatives == () else None,
                **self._common(stage),
                callback=lambda done, _: on_step(done - 1),
                steps=recipe.steps,
                learning_rate=recipe.learning_rate,
            )
        steps = recipe.steps * (method.stages if isinstance(method, Procedure) else 1)
        return made, tokenizer, {"steps": steps, "cost": sum(costs)}

    def _changed(self, stage: Stage) -> tuple[nn.Module, Any, dict[str, Any]]:
        """What an attack of one attempt leaves behind."""
        config: Mapping[str, Any] = stage.config
        whole, tokenizer = self.load(stage.parents["model"])
        attack = self.arena.changes[config["change"]]
        seed = derive_seed(stage.seed, config["change"])
        victim = self.victim(whole, tokenizer, None, config["steps"], seed)
        seen: list[nn.Module] = []

        def look(step: float, model: nn.Module, *_: Any, **__: Any) -> float:
            seen[:] = [deepcopy(model)]
            return 0.0

        spent = attack.attempt(attack.attempts[0], victim, look)
        if not seen:
            raise FloatingPointError("the fine-tuning by which scores are judged diverged")
        return seen[0], tokenizer, {"steps": spent, "cost": spent * config["batch_size"]}

    def _distilled(self, stage: Stage, on_step: OnStep) -> tuple[nn.Module, Any, dict[str, Any]]:
        options, config = self.arena.options, stage.config
        model, tokenizer = self.load(stage.parents["teacher"])
        done = [0]

        def after(steps: int, _: nn.Module) -> None:
            done.append(steps)
            on_step(steps - 1)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the table says how good the student is
            made = undo(
                model,
                tokenizer,
                self.arena.benchmark.forget,
                self.arena.benchmark.retain,
                alpha=None if config.get("new") else config["alpha"],  # type: ignore[arg-type]
                beta=options.beta,
                **asdict(options.student),
                **self._common(stage),
                callback=after,
            )
        return made, tokenizer, {"steps": done[-1], "cost": done[-1] * options.batch_size * (1 + FORWARD_PASS)}

    def _common(self, stage: Stage) -> dict[str, Any]:
        options = self.arena.options
        return {
            "rank": options.rank,
            "master_weights": options.master_weights,
            "gradient_checkpointing": options.checkpointing,
            "accumulate": options.accumulate,
            "batch_size": options.batch_size,
            "seed": stage.seed,
            "progress": False,
        }


def total_steps(stage: Stage, options: ArenaOptions) -> int:
    """Return the maximum number of gradient steps of a stage; 0 for one that trains nothing."""
    config: Mapping[str, Any] = stage.config
    if "recipe" in config:
        return Training(**config["recipe"]["training"]).steps
    return int(config.get("steps", 0))
