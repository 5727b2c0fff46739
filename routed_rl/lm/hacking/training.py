"""One run of a hacking study: train a model under partial oversight, measure it, and train it on without oversight."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig

from routed_rl.lm.adapters import FORGET, KEEP, Adapters, add_adapters, forget_scaled
from routed_rl.lm.grpo import RoutedGRPOTrainer
from routed_rl.lm.hacking.measuring import measure
from routed_rl.lm.hacking.methods import LABELS, METHODS, Method
from routed_rl.lm.hacking.overseer import Labels, Monitor
from routed_rl.lm.hacking.registry import REGISTRY
from routed_rl.lm.hacking.worlds import HACK, HackingWorld, Row
from routed_rl.lm.models import load_model, load_tokenizer, save_model
from routed_rl.options.hacking import HackingRun
from routed_rl.routing import RouteTable
from routed_rl.runs import RunDirectory, derive_seed, read_json, write_json
from routed_rl.runs.files import remove
from routed_rl.runs.progress import progress_bar

BASE: Final = "base"
MODEL, TRAINER, RELEARNING = "model", "trainer", "relearning"
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What the adapter ``forget`` is multiplied by, when the largest safe scale is looked for."""
CURVE, MEMORY = "measured.json", "monitor.safetensors"
"""Our own files in a checkpoint of TRL's."""


def run_config(command: HackingRun) -> dict[str, Any]:
    """Return the configuration of a run: its options, with the code of a world of the user's own."""
    world = REGISTRY.find(command.world, "--worlds")
    if command.method == BASE:  # the same for all worlds that inherit it
        made = world.kind.base
        return {"method": BASE, "made_by": f"{made.__module__}:{made.__qualname__}", "code": world.code()}
    return {**command.config(), "world": world.reference, "code": world.code()}


def do_run(command: HackingRun) -> None:
    """Do one run in its directory. An interrupted run goes on from its last checkpoint."""
    with RunDirectory.open(command.out, run_config(command), command.seed, force=command.force) as run:
        if run.finished:
            return
        run.load_checkpoint()  # TRL has its own checkpoints; this opens the metrics
        begin = perf_counter()
        world = REGISTRY.find(command.world, "--worlds").kind()
        if command.method == BASE:
            save_model(*world.base(command.seed), run.path / MODEL)
            result: dict[str, Any] = {}
        else:
            assert command.base is not None
            model, tokenizer = load_model(command.base / MODEL), load_tokenizer(command.base / MODEL)
            result = _Run(command, world, model, tokenizer, run).result()
        run.timings.append({"seconds": perf_counter() - begin})
        run.finish(result)
        for folder in (TRAINER, RELEARNING):
            remove(run.path / folder)


class _Run:
    """The training of one model, and its measurement."""

    def __init__(self, command: HackingRun, world: HackingWorld, model: Any, tokenizer: Any, run: RunDirectory) -> None:
        self.command, self.world, self.tokenizer, self.run = command, world, tokenizer, run
        self.method = METHODS[command.method]
        self.tests = world.tests(command.seed)
        self.adapters = self._adapters(model)
        self.monitor = Monitor(self.adapters, tokenizer)
        self.labels = Labels(world, self.method, command.oversight, command.seed, self.monitor)
        self.curve: list[dict[str, float]] = []

    def result(self) -> dict[str, Any]:
        """Train and measure."""
        command, folder = self.command, self.run.path / TRAINER
        trainer = self._trainer(self.adapters, self.method, self.labels, folder, command.updates)
        before = _last_checkpoint(folder)
        if before is None:
            self.measure(0)
        else:
            self._restore(before)
        with progress_bar(f"{command.method}, seed {command.seed}", command.updates) as advance:
            trainer.add_callback(_Measuring(self, advance))
            trainer.train(resume_from_checkpoint=str(before) if before is not None else None)
        result: dict[str, Any] = {"curve": self.curve, "deployed": self._deployed()}
        plain = trainer.ablate() if self.method.routed else trainer.merge()
        save_model(plain, self.tokenizer, self.run.path / MODEL)
        if command.relearning:
            result["relearning"] = self._relearn(plain)
        return result

    def measure(self, step: int) -> None:
        """Add a row to the curve: the model as it trains (``on``), and without the adapter ``forget`` (``ablated``)."""
        row: dict[str, float] = {"step": step}
        for policy, scale in {"on": 1.0, **({"ablated": 0.0} if self.method.routed else {})}.items():
            row |= {f"{policy}.{name}": rate for name, rate in self._rates(scale, step).items()}
        every, hacks = (
            np.array(self.labels.right, dtype=float)[-self.command.every :].T
            if self.labels.right
            else (np.array([]),) * 2
        )
        row |= {"monitor_right": _mean(every), "monitor_found": _mean(hacks)}
        self.curve.append({name: value for name, value in row.items() if not np.isnan(value)})
        self.run.metrics.append({"step": step, "solved": row["on.solved"], "hack": row["on.hack"]})

    def save(self, checkpoint: Path) -> None:
        """Add to a checkpoint of TRL's what it does not keep. A checkpoint without the curve is not used."""
        if self.monitor.said:
            seen = torch.from_numpy(np.stack(self.monitor.seen))
            save_file({"seen": seen}, checkpoint / MEMORY, {"said": json.dumps(self.monitor.said)})
        write_json(
            checkpoint / CURVE, {"curve": self.curve, "said": self.monitor.said, "right": _plain(self.labels.right)}
        )

    def _restore(self, checkpoint: Path) -> None:
        found = read_json(checkpoint / CURVE)
        self.curve = found["curve"]
        for row in self.curve:
            self.run.metrics.append({"step": int(row["step"]), "solved": row["on.solved"], "hack": row["on.hack"]})
        self.labels.right = [
            (np.nan if every is None else every, np.nan if hacks is None else hacks) for every, hacks in found["right"]
        ]
        if found["said"]:
            self.monitor.learn(load_file(checkpoint / MEMORY)["seen"].numpy(), found["said"])

    def _rates(self, scale: float, step: int, model: Any = None) -> dict[str, float]:
        seed = derive_seed(self.command.seed, "hacking", "measure", step, str(scale))
        given = (self.tokenizer, self.world, self.tests, self.command.oversight, seed)
        if model is not None:
            return measure(model, *given)
        with forget_scaled(self.adapters, scale):
            return measure(self.adapters.model, *given)

    def _deployed(self) -> dict[str, Any]:
        """Return the rates at the largest scale at which the overseer flags no more than it did before training."""
        updates = self.command.updates
        rates = {scale: self._rates(scale, updates) for scale in (SCALES if self.method.routed else (1.0,))}
        most = self.curve[0].get("on.flagged", 0.0)
        safe = [scale for scale, of in rates.items() if of["flagged"] <= most]
        scale = max(safe, default=0.0 if self.method.routed else 1.0)
        return {"scale": scale, "scales": {str(at): _without_nan(of) for at, of in rates.items()}}

    def _relearn(self, plain: Any) -> list[dict[str, float]]:
        """Train a finished model on, with the grader's reward alone, and return its rates after some updates."""
        adapters = self._adapters(plain)
        free = replace(METHODS["plain"], inoculated=False)
        labels = Labels(self.world, free, 0.0, self.command.seed, Monitor(adapters, self.tokenizer))
        folder = self.run.path / RELEARNING
        trainer = self._trainer(adapters, free, labels, folder, self.command.relearning, save=False)
        rows: list[dict[str, float]] = []

        def measured(step: int) -> None:
            rows.append({"step": step, **_without_nan(self._rates(1.0, step, adapters.model))})

        measured(0)
        trainer.add_callback(_At(measured, lambda step: step % (10 if step <= 50 else 50) == 0))
        trainer.train()
        return rows

    def _adapters(self, model: Any) -> Adapters:
        return add_adapters(model, self.command.rank, derive_seed(self.command.seed, "hacking", "adapters"))

    def _trainer(
        self, adapters: Adapters, method: Method, labels: Labels, folder: Path, updates: int, save: bool = True
    ) -> RoutedGRPOTrainer:
        command, world = self.command, self.world
        rows = world.prompts(command.oversight, command.seed)
        if method.inoculated:
            rows = [{**row, "prompt": world.inoculated(row)} for row in rows]
        penalties = {HACK: dict.fromkeys(method.penalised, -method.penalty)}
        trainer = RoutedGRPOTrainer(
            adapters,
            _reward(world),
            GRPOConfig(
                str(folder),
                max_steps=updates,
                per_device_train_batch_size=command.batch_size,
                num_generations=command.group,
                max_completion_length=world.most_tokens,
                learning_rate=command.learning_rate,
                beta=command.beta,
                lr_scheduler_type="constant",
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=command.device == "cpu",
                seed=derive_seed(command.seed, "hacking", "trainer"),
                save_strategy="steps" if save else "no",
                save_steps=2 * command.every,
                save_total_limit=1,
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            overseer=labels,
            table=RouteTable(
                {label: method.weights.get(label, {}) for label in (*LABELS, "unlabelled")}, (KEEP, FORGET)
            ),
            shifts=penalties,
            solo=method.solo,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=self.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


class _At(TrainerCallback):
    """Calls a function with the number of updates done, after those for which another one is true, and the last."""

    def __init__(self, call: Callable[[int], None], when: Callable[[int], bool]) -> None:
        self._call, self._when = call, when

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._when(state.global_step) or state.global_step == state.max_steps:
            self._call(state.global_step)


class _Measuring(_At):
    """Measures the model in training, and adds to checkpoints what TRL's leave out."""

    def __init__(self, run: _Run, advance: Any) -> None:
        super().__init__(run.measure, lambda step: step % run.command.every == 0)
        self._run, self._advance = run, advance

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._advance()
        super().on_step_end(args, state, control, **given)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._run.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _reward(world: HackingWorld) -> Any:
    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        rows: list[Row] = [
            {"prompt": text, **{name: of[i] for name, of in columns.items() if isinstance(of, list)}}
            for i, text in enumerate(prompts)
        ]
        return [world.reward(text, row) for text, row in zip(completions, rows, strict=True)]

    return reward


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is complete."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{CURVE}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _without_nan(rates: Mapping[str, float]) -> dict[str, float]:
    return {name: rate for name, rate in rates.items() if not np.isnan(rate)}


def _plain(pairs: Sequence[tuple[float, float]]) -> list[list[float | None]]:
    return [[None if np.isnan(of) else of for of in pair] for pair in pairs]
