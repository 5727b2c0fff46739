"""Stages of an arena in a process of their own: ``python -m routed_rl.unlearning.arena.worker``."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.modeling_utils  # noqa: F401 (every model needs it; imported before processes are forked)
import tyro
from rich.progress import Progress
from safetensors.numpy import load_file, save_file
from torch import nn

import routed_rl
from routed_rl.errors import UserError, guarded, user_input
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.arena import ArenaOptions
from routed_rl.runs import Stage, derive_seed, finish_stage, with_ancestors
from routed_rl.runs.files import JSON
from routed_rl.runs.grid import FAILED, STAGES
from routed_rl.runs.process import check_device, one_thread
from routed_rl.runs.progress import progress_display
from routed_rl.unlearning.arena.attacking import MAIN, checksum, run_attack
from routed_rl.unlearning.arena.entries import MAKE, NUMBERS, ORIGINAL, RETRAINED, SCORE, Arena
from routed_rl.unlearning.arena.making import MODEL, Maker, total_steps
from routed_rl.unlearning.benchmarks import Benchmark, Example
from routed_rl.unlearning.scores import Reader, Score, interval
from routed_rl.wording import speak_of


class Worker:
    """Does stages, one after the other. A model's scores share what they read."""

    def __init__(self, options: ArenaOptions, root: Path) -> None:
        self.arena, self.root = Arena(options), root
        self.maker = Maker(self.arena, root)
        self._readers: dict[str, Reader] = {}

    def do(self, stage: Stage, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Do a stage whose parents are finished; FloatingPointError if a loss is not finite."""
        with stage.open(self.root) as run:
            if run.finished:
                return
            run.load_checkpoint()  # finds none: a stage that was interrupted begins again
            begun = time.perf_counter()
            files: list[str] = []
            result: dict[str, JSON]
            if stage.kind in MAKE:
                result = self.maker.make(stage, on_step)
                parts = sorted((run.path / MODEL).glob("*.safetensors"))
                files = [f"{MODEL}/config.json", *(f"{MODEL}/{part.name}" for part in parts)]
            elif stage.kind == SCORE:
                result, files = self._scored(stage, run.path / NUMBERS), [NUMBERS]
            else:
                result = self._attacked(stage)
            run.timings.append({"step": 0, "seconds": time.perf_counter() - begun})
            finish_stage(run, result, files)

    def forget(self) -> None:
        """Read all models anew, after what may have changed one."""
        self._readers.clear()

    def _scored(self, stage: Stage, path: Path) -> dict[str, JSON]:
        """Measure a score, write the numbers of examples to a path, and return the score with its interval."""
        score = next(of.kind() for of in self.arena.scores.values() if of.reference == stage.config["score"])
        roles = {role: self.reader(stage.parents[role]) for role in (ORIGINAL, RETRAINED) if role in stage.parents}
        reader = self.reader(stage.parents["model"])
        reader.companions = roles
        before = checksum(reader.model)
        numbers = checked_numbers(score.examples(reader))
        if checksum(reader.model) != before:
            raise UserError("examples() has changed the model that it reads")
        save_file(numbers, path)
        compared = None
        if score.compared:
            with_retrained = stage.parents.get("compared")
            compared = numbers if with_retrained is None else load_file(with_retrained.path(self.root) / NUMBERS)
        value = checked_value(score, score.value(numbers, compared))
        ends = interval(score, numbers, compared, derive_seed(stage.seed, "bootstrap"))
        named = zip(("value", "low", "high"), (value, *ends), strict=True)
        return {name: float(value) if np.isfinite(value) else None for name, value in named}

    def reader(self, stage: Stage) -> Reader:
        """Return the reader of a stage's model. It is kept for further scores."""
        if stage.key not in self._readers:
            self._readers[stage.key] = Reader(*self.maker.load(stage), self.arena.benchmark)
        return self._readers[stage.key]

    def _attacked(self, stage: Stage) -> dict[str, JSON]:
        plugin = next(of for of in self.arena.attacks.values() if of.reference == stage.config["attack"])
        attack = self.arena.attack(plugin)
        self.forget()  # an attack needs the memory
        model, tokenizer = self.maker.load(stage.parents["model"])
        original = self.maker.load(stage.parents[ORIGINAL])[0] if ORIGINAL in stage.parents else None
        options, benchmark = self.arena.options, self.arena.benchmark
        score = self.arena.scores[self.arena.main].kind()

        def measure(
            attacked: nn.Module, change: Callable[[Example], Example], of: Benchmark = benchmark
        ) -> dict[str, float]:
            return {MAIN: score.value(score.examples(Reader(attacked, tokenizer, of, change)))}

        seed = derive_seed(stage.seed, "attack")

        utility = self.arena.utility if attack.group == "weights" else None  # else no copy of the model is needed

        def measure_worst(attacked: nn.Module) -> dict[str, float]:
            assert utility is not None
            kept = self.arena.scores[utility].kind()
            return {utility: kept.value(kept.examples(Reader(attacked, tokenizer, benchmark)))}

        victim = self.maker.victim(model, tokenizer, original, options.budget, seed)
        return run_attack(attack, victim, measure, options.budget, measure_worst=measure_worst if utility else None)


@dataclass(frozen=True)
class Stages(ArenaOptions):
    """Do stages of an arena, in this order. The stages that they depend on, apart from each other, are finished."""

    only: tuple[str, ...] = ()
    """names of the stages' directories"""


def main(argv: Sequence[str] | None = None) -> None:
    """Do the stages of a command line. A user's mistake ends as in :func:`~routed_rl.errors.guarded`."""
    command = tyro.cli(Stages, args=argv)
    guarded(lambda: _do_all(command))


def _do_all(command: Stages) -> None:
    speak_of(ArenaOptions)
    one_thread()
    quiet_libraries()
    assert command.out is not None
    with user_input():
        check_device(command.device)
        worker = Worker(command, command.out / STAGES)
        entries = worker.arena.entries()
        stages = {s.path(worker.root).name: s for s in with_ancestors(s for entry in entries for s in entry)}
    if unknown := [name for name in command.only if name not in stages]:
        raise UserError(
            f"--only {unknown[0]!r} is not a stage of this study; if the code of a plug-in was edited meanwhile, start "
            "the study again"
        )
    names = {stage.key: f"{entry.name}, seed {entry.seed}" for entry in reversed(entries) for stage in entry}
    failed = []
    with progress_display() as display:
        for name in command.only:
            stage = stages[name]
            try:
                _do(worker, stage, display)
            except Exception as error:  # the others do not depend on it
                what = stage.config.get("score") or stage.config.get("attack") or stage.config.get("method")
                of = f"{what} ({names[stage.key]}): " if what and stage.key in names else ""
                worker.forget()
                path = os.path.realpath(stage.path(worker.root))
                print(f"{FAILED}{path}: {of}{described_error(error)}", file=sys.stderr)
                failed.append(name)
    if failed:
        raise UserError(f"{len(failed)} of {len(command.only)} stages failed, {failed[0]} first")


def described_error(error: Exception) -> str:
    """Return one line about an error of a stage. If it was raised by a user's own code, the line has the last place
    there, and standard error has the traceback."""
    raised = error.__cause__ or error
    places = traceback.extract_tb(raised.__traceback__)
    own = [place for place in places if not _is_installed(place.filename)]
    if isinstance(error, UserError) and not own:
        return str(error)
    traceback.print_exception(raised)
    place = (own or places)[-1]
    return f"{type(raised).__name__}: {raised} ({Path(place.filename).name}, line {place.lineno})"


def _is_installed(file: str) -> bool:
    """Return whether code is of this package, of another installed one, or of Python itself."""
    own, python = Path(routed_rl.__file__).parent, sysconfig.get_paths()
    folders = [own, *(Path(python[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
    return file.startswith("<") or any(Path(file).is_relative_to(folder) for folder in folders)


def checked_numbers(given: object) -> dict[str, np.ndarray]:
    """Return the numbers of a score as arrays of float64.

    Raises:
        UserError: for what is no mapping of arrays, or without any example.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"examples() must return arrays by name, got {type(given).__name__}")
    numbers = {name: np.ascontiguousarray(of, dtype=np.float64) for name, of in given.items()}
    if wrong := [name for name, of in numbers.items() if of.ndim != 1]:
        raise UserError(
            f"examples() must return a number for each example; {wrong[0]!r} has the shape {numbers[wrong[0]].shape}"
        )
    if not any(len(of) for of in numbers.values()):
        raise UserError("examples() found no example: has the benchmark a set of this name?")
    return numbers


def checked_value(score: Score, value: object) -> float:
    """Return the value of a score.

    Raises:
        UserError: for what is no number, or a number outside the score's limits.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(f"value() must return a number, got {type(value).__name__}") from None
    low, high = (end if limit is None else limit for end, limit in zip((-np.inf, np.inf), score.limits, strict=True))
    if np.isfinite(number) and not low - 1e-6 <= number <= high + 1e-6:
        raise UserError(f"value() returned {number:g}, which is outside of limits = {score.limits}")
    return number


def _do(worker: Worker, stage: Stage, display: Progress) -> None:
    task: Any = display.add_task(stage.kind, total=total_steps(stage, worker.arena.options) or None)
    try:
        with user_input():
            worker.do(stage, lambda step: display.update(task, completed=step + 1))
    except FloatingPointError as error:
        raise UserError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise UserError(f"the device has too little memory, lower --batch-size: {error}") from error


if __name__ == "__main__":
    main()
