"""The work of the stages that attack and measure the models of an UNDO study."""

from __future__ import annotations

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
from routed_rl.lm import evaluate, load_model
from routed_rl.lm.inputs import Text
from routed_rl.lm.processes import agreed
from routed_rl.options.undo import UndoOptions
from routed_rl.runs import RunDirectory, Stage, derive_seed
from routed_rl.unlearning.attacked import load_attacked, save_attacked
from routed_rl.unlearning.attacks import barrier, quantised, weight_distance
from routed_rl.unlearning.undo_study.domains import Domains
from routed_rl.unlearning.undo_study.measuring import make_attack
from routed_rl.unlearning.undo_study.members import even_parts

MODEL, ATTACKED = "model", "attacked"
BITS = (8, 4)
"""Bits to which weights are rounded, to see whether rounding brings the forget performance back."""
OnStep = Callable[[int], None]
Measured = tuple[dict[str, Any], list[str]]
"""The result of a stage, and the names of its files that later stages read."""


class Measurements:
    """Does stages that attack and measure models, in the directory of all stages."""

    def __init__(self, command: UndoOptions, text: Text, root: Path) -> None:
        self.command, self.text, self.root = command, text, root
        self.domains = Domains(command, text)

    def measure(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> Measured:
        """Measure a model, and how much it knows with rounded weights."""
        run.load_checkpoint()  # finds none
        made, metric, count = stage.parents["model"], *metric_of(stage.config)
        model = self.load(made)
        measures = self.domains.measures(model, metric, count)
        if bad := [kind for kind, value in measures.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"after the stage {made.kind} the {bad[0]} {metric} is {measures[bad[0]]}: lower the learning rate"
            )
        rounded: dict[str, float | None] = dict.fromkeys(map(str, BITS))  # None: the rounded model computes nothing
        for bits in BITS:
            with suppress(FloatingPointError):
                value = self.domains.measure(quantised(model, bits), metric, "forget", count)
                rounded[str(bits)] = value if math.isfinite(value) else None
        return {"measures": measures, "quantised": rounded}, []

    def attack(self, stage: Stage, run: RunDirectory | None, on_step: OnStep) -> Measured:
        """Attack a model, attempt by attempt. Save the attacked models, or measure them if the stage has a metric.

        Several processes do this together. Only the first one has a run.
        """
        parts = even_parts(self.command, self.command.relearn.batch_size)
        attack = make_attack(self.command, str(stage.config["attack"]), parts)
        model = self.load(stage.parents["model"])
        source = self.domains.attacker(model, stage.seed)
        found, folder = found_so_far(run), stage.path(self.root)

        def look(shown: list[dict[str, Any]], setting: str, step: int, attacked: nn.Module) -> None:
            if "measured" in stage.config:
                shown.append(self._of_attacked(stage, step, attacked))
            else:
                save_attacked(attacked, model, folder / _place(setting, step))
                shown.append({"step": step})

        for i, setting in enumerate(attack.attempts):
            if str(setting) in found:
                continue
            since = time.perf_counter()
            shown: list[dict[str, Any]] = []
            with user_input(), suppress(FloatingPointError):
                attack.attempt(
                    setting,
                    model,
                    source,
                    partial(look, shown, str(setting)),
                    seed=derive_seed(stage.seed, "attack"),
                    on_step=partial(later, on_step, i * attack.steps),
                )
            found[str(setting)] = shown
            done = (i + 1) * attack.steps
            if run is None:
                continue
            run.timings.append({"step": done, "seconds": time.perf_counter() - since})
            run.metrics.append({"step": done, "reached": shown[-1]["step"] if shown else 0})
            run.save_checkpoint(i + 1, {}, {"found": found})
        if "measured" in stage.config:
            return {"curves": self._from_start(stage, found)}, []
        steps = {setting: [int(entry["step"]) for entry in shown] for setting, shown in found.items()}
        places = [folder / _place(setting, step) for setting, those in steps.items() for step in those]
        if run is None:
            return {}, []
        files = [file.relative_to(folder).as_posix() for place in places for file in place.iterdir()]
        return {"attacked": steps}, files

    def curves(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> Measured:
        """Measure the models that an attack has made."""
        attack, found = stage.parents["attack"], found_so_far(run)
        model, folder = self.load(stage.parents["model"]), attack.path(self.root)
        for i, (setting, steps) in enumerate(self.result(attack)["attacked"].items()):
            if setting in found:
                continue
            found[setting] = []
            with suppress(FloatingPointError):
                for step in steps:
                    attacked = load_attacked(model, folder / _place(setting, step))
                    found[setting].append(self._of_attacked(stage, step, attacked))
            run.save_checkpoint(i + 1, {}, {"found": found})
        return {"curves": self._from_start(stage, found)}, []

    def _of_attacked(self, stage: Stage, step: int, attacked: nn.Module) -> dict[str, Any]:
        """Return an attacked model's performance by each metric of a stage; FloatingPointError if it is not finite."""
        found: dict[str, Any] = {"step": step}
        config: Mapping[str, Any] = stage.config
        for metric, measured in config["measured"].items():
            found[metric] = self.domains.measures(attacked, *metric_of(measured))
            if not all(map(math.isfinite, found[metric].values())):
                raise FloatingPointError("the attack has diverged")
        return found

    def _from_start(self, stage: Stage, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """Return the curves of an attack, by metric and attempt, with the performance before it."""
        curves: dict[str, Any] = {}
        config: Mapping[str, Any] = stage.config
        for metric in config["measured"]:
            before = {"step": 0, **self.result(stage.parents[metric])["measures"]}
            curves[metric] = {
                setting: [before, *({"step": entry["step"], **entry[metric]} for entry in curve)]
                for setting, curve in found.items()
            }
        return curves

    def distance(self, stage: Stage, run: RunDirectory, on_step: OnStep) -> Measured:
        """Measure how far a model is from the reference model; None where their weights have other shapes."""
        run.load_checkpoint()  # finds none
        model, original = (self.load(stage.parents[name]) for name in ("model", "reference"))
        if [p.shape for p in model.parameters()] != [p.shape for p in original.parameters()]:
            return {"distance": None, "barrier": None}, []
        retain = self.domains.documents("retain", stage.config["documents"])  # type: ignore[arg-type]
        between = barrier(model, original, lambda mixed: evaluate(mixed, retain).mean())
        return {"distance": weight_distance(model, original), "barrier": between}, []

    def load(self, stage: Stage, dtype: torch.dtype | None = torch.float32) -> nn.Module:
        """Return the model of a finished stage; None: in the precision in which it was saved."""
        self.result(stage)
        return load_model(str(stage.path(self.root) / MODEL), dtype).to(self.command.device)

    def result(self, stage: Stage) -> dict[str, Any]:
        """The result of a finished stage; UserError if it is not finished."""
        result = stage.result(self.root)
        if result is None:
            raise UserError(f"the stage {str(stage.path(self.root))!r} is not finished: run the study again")
        return result


def metric_of(config: Mapping[str, Any]) -> tuple[str, int]:
    """Return a metric, and on how many documents it is measured."""
    return config["metric"], config.get("documents", 0)


def _place(setting: str, step: int) -> str:
    """Return where an attack's stage keeps an attacked model."""
    return f"{ATTACKED}/{setting}/{step}"


def found_so_far(run: RunDirectory | None) -> dict[str, Any]:
    """Return what an interrupted stage had found, by attempt, on all processes. The first one has the run."""
    checkpoint = None if run is None else run.load_checkpoint()
    return agreed({} if checkpoint is None else checkpoint.meta["found"])


def later(on_step: OnStep, done: int, step: int) -> None:
    """Report a step of an attack at a later learning rate."""
    on_step(done + step)
