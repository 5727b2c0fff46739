"""One run of a hacking study: make a model, train it under partial oversight, or train it on without an overseer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
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
from routed_rl.lm.hacking.worlds import HACK, SOLVED, HackingWorld, Row
from routed_rl.lm.models import load_model, load_tokenizer, save_model
from routed_rl.options.hacking import HackingRun
from routed_rl.plugins import Plugin
from routed_rl.routing import UNLABELLED, RouteTable
from routed_rl.runs import RunDirectory, derive_seed, read_json, write_json
from routed_rl.runs.files import remove
from routed_rl.runs.progress import progress_bar

BASE: Final = "base"
MODEL, TRAINER = "model", "trainer"
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What the adapter ``forget`` is multiplied by, when the largest safe scale is looked for."""
REPLAYED = 16
"""Completions of each label that are learned again in each update, by methods that do so."""
CURVE, MEMORY = "measured.json", "monitor.safetensors"
"""Our own files in a checkpoint of TRL's."""


def base_name(world: Plugin[HackingWorld]) -> str:
    """Return the name of the model from which training in a world starts. Built-in worlds may share one."""
    return world.kind.base.__qualname__.partition(".")[0] if world.built_in else f"own-{world.name}"


def run_config(command: HackingRun) -> dict[str, Any]:
    """Return the configuration of a run: its options, with the code of a world of the user's own."""
    world = REGISTRY.find(command.world, "--worlds")
    if command.method == BASE:
        return {"method": BASE, "base": base_name(world), "code": world.code()}
    return {**command.config(), "world": world.reference, "code": world.code()}


def do_run(command: HackingRun) -> None:
    """Do one run in its directory. An interrupted run goes on from its last checkpoint."""
    with RunDirectory.open(command.out, run_config(command), command.seed, force=command.force) as run:
        if run.finished:
            return
        run.load_checkpoint()  # TRL has its own checkpoints; this opens the metrics
        begin, earlier = perf_counter(), 0.0
        world = REGISTRY.find(command.world, "--worlds").kind()
        result: dict[str, Any] = {}
        if command.method == BASE:
            save_model(*world.base(command.seed), run.path / MODEL)
        else:
            assert command.base is not None
            model, tokenizer = load_model(command.base / MODEL, None), load_tokenizer(command.base / MODEL)
            training = (Relearning if command.relearning else Training)(command, world, model, tokenizer, run)
            result, earlier = training.result(), training.earlier
        run.timings.append({"seconds": earlier + perf_counter() - begin})
        run.finish(result)
        remove(run.path / TRAINER)


class Relearning:
    """The further training of a finished model, with the grader's reward alone."""

    method = METHODS["plain"]
    saves = False

    def __init__(self, command: HackingRun, world: HackingWorld, model: Any, tokenizer: Any, run: RunDirectory) -> None:
        self.command, self.world, self.tokenizer, self.run = command, world, tokenizer, run
        self._settings = deepcopy((model.config, model.generation_config))
        self.updates = command.relearning or command.updates
        self.tests, self.prompts = world.tests(command.seed), world.prompts(command.oversight, command.seed)
        self.adapters: Adapters = add_adapters(model, command.rank, derive_seed(command.seed, "hacking", "adapters"))
        self.monitor = Monitor(self.adapters, tokenizer, command.at_once)
        self.labels = Labels(world, self.method, command.oversight, command.seed, self.prompts, self.monitor)
        self.curve: list[dict[str, float]] = []
        self.earlier, self._begin = 0.0, perf_counter()  # seconds of earlier starts of the run
        self.trainer = self._trainer()

    def result(self) -> dict[str, Any]:
        """Train, and return what is measured on the way."""
        self.measure(0)
        with progress_bar(f"{self.command.method}, seed {self.command.seed}", self.updates) as advance:
            self.trainer.add_callback(_Measuring(self, advance))
            self.trainer.train()
        return {"relearning": self.curve}

    def is_measured(self, step: int) -> bool:
        """Return whether the model is measured after so many updates: often at first."""
        return step % (10 if step <= 50 else 50) == 0

    def measure(self, step: int) -> None:
        """Add a row to the curve."""
        self._add({"step": step, **self.rates(1.0, step)})

    def save(self, checkpoint: Path) -> None:
        """Add to a checkpoint of TRL's what it does not keep."""

    def rates(self, scale: float, step: int) -> dict[str, float]:
        """Return what the model does if the adapter ``forget`` is multiplied by ``scale``."""
        seed = derive_seed(self.command.seed, "hacking", "measure", step, str(scale))
        with forget_scaled(self.adapters, scale):
            return measure(self.trainer, self.tokenizer, self.world, self.tests, self.command, seed)

    def _add(self, row: Mapping[str, float]) -> None:
        self.curve.append({name: value for name, value in row.items() if not np.isnan(value)})
        self._log(self.curve[-1])

    def _log(self, row: Mapping[str, float]) -> None:
        solved, hack = (row[f"on.{name}"] if f"on.{name}" in row else row[name] for name in ("solved", "hack"))
        self.run.metrics.append({"step": int(row["step"]), "solved": solved, "hack": hack})

    def _trainer(self) -> RoutedGRPOTrainer:
        command, method = self.command, self.method
        texts = [self.world.inoculated(row) if method.inoculated else row["prompt"] for row in self.prompts]
        penalty = command.penalty / (command.oversight if method.scaled else 1.0)
        at_once = command.at_once or command.batch_size
        trainer = RoutedGRPOTrainer(
            self.adapters,
            _reward(self.world, self.prompts, method),
            GRPOConfig(
                str(self.run.path / TRAINER),
                max_steps=self.updates,
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=command.batch_size // at_once,
                num_generations=command.group,
                max_completion_length=self.world.most_tokens,
                learning_rate=command.learning_rate,
                beta=command.beta,
                lr_scheduler_type="constant",
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=command.device == "cpu",
                seed=derive_seed(command.seed, "hacking", "trainer"),
                save_strategy="steps" if self.saves else "no",
                save_steps=2 * command.every,
                save_total_limit=1,
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            overseer=self.labels,
            table=RouteTable({of: method.weights.get(of, {}) for of in (*LABELS, UNLABELLED)}, (KEEP, FORGET)),
            shifts={HACK: dict.fromkeys(method.penalised, -penalty)},
            solo=method.solo,
            replay=REPLAYED if method.replayed else 0,
            replay_table=RouteTable(method.replayed, (KEEP, FORGET)),
            train_dataset=Dataset.from_dict({"prompt": texts, "row": list(range(len(texts)))}),
            processing_class=self.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


class Training(Relearning):
    """The training of one model under partial oversight."""

    saves = True

    def __init__(self, command: HackingRun, *given: Any) -> None:
        self.method = METHODS[command.method]
        super().__init__(command, *given)

    def result(self) -> dict[str, Any]:
        """Train, measure, and save the finished model."""
        before = _last_checkpoint(self.run.path / TRAINER)
        if before is None:
            self.measure(0)
        else:
            self._restore(before)
        with progress_bar(f"{self.command.method}, seed {self.command.seed}", self.updates) as advance:
            self.trainer.add_callback(_Measuring(self, advance))
            if self.curve[-1]["step"] < self.updates:
                self.trainer.train(resume_from_checkpoint=str(before) if before is not None else None)
            else:  # it was interrupted after its last update
                self.trainer._load_from_checkpoint(str(before))
        result = {"curve": self.curve, "deployed": self._deployed()}
        plain = self.trainer.ablate() if self.method.routed else self.trainer.merge()
        plain.config, plain.generation_config = self._settings  # training changes some
        save_model(plain, self.tokenizer, self.run.path / MODEL)
        return result

    def is_measured(self, step: int) -> bool:
        """Return whether the model is measured after so many updates."""
        return step % self.command.every == 0

    def measure(self, step: int) -> None:
        """Add a row to the curve: the model as it trains (``on``), and without the adapter ``forget`` (``ablated``)."""
        row: dict[str, float] = {"step": step}
        for policy, scale in {"on": 1.0, **({"ablated": 0.0} if self.method.routed else {})}.items():
            row |= {f"{policy}.{name}": rate for name, rate in self.rates(scale, step).items()}
        latest = self.labels.right[-self.command.every :]
        row |= {"monitor_right": _mean(every for every, _ in latest), "monitor_found": _mean(of for _, of in latest)}
        self._add(row)

    def save(self, checkpoint: Path) -> None:
        """Add to a checkpoint of TRL's what it does not keep. A checkpoint without the curve is not used."""
        if self.monitor.said:
            seen = torch.from_numpy(np.stack(self.monitor.seen))
            save_file({"seen": seen}, checkpoint / MEMORY, {"said": json.dumps(self.monitor.said)})
        right = [[None if np.isnan(of) else of for of in pair] for pair in self.labels.right]
        kept = {
            "curve": self.curve,
            "said": self.monitor.said,
            "right": right,
            "seconds": self.earlier + perf_counter() - self._begin,
        }
        write_json(checkpoint / CURVE, kept)

    def _restore(self, checkpoint: Path) -> None:
        found = read_json(checkpoint / CURVE)
        self.curve, self.earlier = found["curve"], found["seconds"]
        for row in self.curve:
            self._log(row)
        self.labels.right = [
            (np.nan if every is None else every, np.nan if hacks is None else hacks) for every, hacks in found["right"]
        ]
        if found["said"]:
            self.monitor.learn(load_file(checkpoint / MEMORY)["seen"].numpy(), found["said"])

    def _deployed(self) -> dict[str, Any]:
        """Return the rates at some scales, and the largest at which no more is flagged than before training."""
        last, known = self.curve[-1], {1.0: "on.", 0.0: "ablated."}
        rates = {}
        for scale in SCALES if self.method.routed else (1.0,):
            if prefix := known.get(scale):
                rates[scale] = {name.removeprefix(prefix): of for name, of in last.items() if name.startswith(prefix)}
            else:
                rates[scale] = {name: of for name, of in self.rates(scale, self.updates).items() if not np.isnan(of)}
        most = self.curve[0].get("on.flagged", 0.0)
        safe = [scale for scale, of in rates.items() if of.get("flagged", 0.0) <= most]
        return {"scale": max(safe, default=min(rates)), "scales": {str(at): of for at, of in rates.items()}}


class _Measuring(TrainerCallback):
    """Measures the model in training, and adds to checkpoints what TRL's leave out."""

    def __init__(self, training: Relearning, advance: Callable[..., None]) -> None:
        self._training, self._advance = training, advance

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance()
        if self._training.is_measured(state.global_step) or state.global_step == state.max_steps:
            self._training.measure(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _reward(world: HackingWorld, prompts: Sequence[Row], method: Method) -> Any:
    def reward(completions: Sequence[str], row: Sequence[int], **_: Any) -> list[float]:
        given = [(text, prompts[number]) for text, number in zip(completions, row, strict=True)]
        if method.knows_truth:
            return [world.reward(*one) * (world.outcome(*one) == SOLVED) for one in given]
        return [world.reward(*one) for one in given]

    return reward


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is complete."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{CURVE}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _mean(values: Any) -> float:
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else float("nan")
