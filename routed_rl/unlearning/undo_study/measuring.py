"""The metrics and attacks of an UNDO study, and the stages that attack and measure its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from routed_rl.lm import (
    PACKAGED_MODELS,
    PRESETS,
    Prompt,
    build_model,
    read_prompts,
    word_problem_prompts,
)
from routed_rl.lm.completions import encode_prompts
from routed_rl.lm.folders import outline
from routed_rl.lm.inputs import TEXT_SEED, Text, text_identity
from routed_rl.options.undo import UndoOptions
from routed_rl.plugins import Registry
from routed_rl.runs import Stage
from routed_rl.unlearning.attacked import attacked_size
from routed_rl.unlearning.attacks import Attack, Relearning
from routed_rl.unlearning.metrics import Answers, Completions, Harness, Loss, Metric
from routed_rl.wording import written

METRICS: Registry[Metric] = Registry(
    "metric",
    Metric,
    {"answers": Answers, "completions": Completions, "loss": Loss, "lm-eval": Harness},
    "routed_rl.metrics",
)
ATTACKS: Registry[Attack] = Registry("attack", Attack, {"relearn": Relearning}, "routed_rl.attacks")
MEASURE, ATTACK, CURVES, DISTANCE = "measure", "attack", "curves", "distance"
"""Kinds of stages: of a model, the metric; of a model, attacked models; of these, the metric; of a model, how far it is
from the reference model. An attack whose models are not kept measures them itself."""
MEASURES = (MEASURE, ATTACK, CURVES, DISTANCE)
TRAINED = ("pretrain", "suppress", "tune", "distil", ATTACK)
"""Kinds of stages in which a model is trained."""


def make_metric(command: UndoOptions, tokenizer: Any, name: str, documents: int) -> Metric:
    """Return a metric by its name.

    Args:
        documents: number of documents of each kind; prompts of word-problems are as many.

    Raises:
        ValueError, OSError: for a metric that is not found, or prompts that cannot be read.
    """
    kind = METRICS.find(name, "--metric").kind
    if kind is Answers:
        return Answers(command.answer)
    if kind is Completions:
        return Completions(_prompts(command, tokenizer, documents), command.answer)
    if kind is Harness:
        return Harness(command.lm_eval)
    return kind()


def metric_identity(command: UndoOptions, name: str, documents: int) -> dict[str, Any]:
    """Return what a measured number depends on, besides the model and the text."""
    metric = METRICS.find(name, "--metric")
    found: dict[str, Any] = {"metric": metric.reference}
    if metric.kind is Harness:
        tasks = command.lm_eval
        include = None if tasks.include is None else text_identity(str(tasks.include))
        return found | {"lm_eval": [tasks.retain, tasks.forget, tasks.value, tasks.limit, include]}
    found["documents"] = documents
    if metric.kind in (Answers, Completions):
        found["answer"] = command.answer
    if metric.kind is Completions:
        found["prompts"] = None if command.prompts is None else text_identity(str(command.prompts))
    return found | ({} if metric.built_in else {"code": metric.code()})


def make_attack(command: UndoOptions, name: str, accumulate: int = 1) -> Attack:
    """Return an attack by its name; ValueError if it is not found."""
    kind = ATTACKS.find(name, "--attack").kind
    if kind is Relearning:
        is_shared = command.processes > 1
        return Relearning(command.relearn, accumulate, command.precision, command.checkpointing, is_shared)
    return kind()


def attack_identity(command: UndoOptions, name: str) -> dict[str, Any]:
    """Return what an attack depends on, besides the model and the text.

    The attacker's documents and batches are those of the options of relearning, whatever the attack.
    """
    attack, made = ATTACKS.find(name, "--attack"), make_attack(command, name)
    relearning = {**asdict(command.relearn), "measured": sorted(command.relearn.measured)}
    del relearning["keep_gb"]
    found: dict[str, Any] = {"attack": attack.reference, "length": command.length, "pack": command.pack}
    if command.relearn.others:  # the attacker has none of the documents on which models are measured
        found["documents"] = command.test_documents
    if not attack.built_in:
        found |= {"attack_code": attack.code(), "steps": made.steps * len(made.attempts)}
    return found | {"relearn": relearning, "precision": command.precision}


@dataclass(frozen=True, eq=False)
class Measuring:
    """The stages that attack and measure a model.

    Attributes:
        measures: the model's performance, by metric. Metrics and attacks are named by their references.
        attacks: the attacked models that are kept, by attack.
        curves: the performance during an attack, by attack and metric. Where attacked models are not kept, one stage
            attacks and measures them by all metrics.
        distance: how far the model is from the reference model.
    """

    measures: Mapping[str, Stage]
    attacks: Mapping[str, Stage]
    curves: Mapping[tuple[str, str], Stage]
    distance: Stage

    def __iter__(self) -> Iterator[Stage]:
        yield from self.measures.values()
        yield from self.attacks.values()
        yield from self.curves.values()
        yield self.distance


class Measurer:
    """Makes the stages that attack and measure models.

    Attributes:
        main: the first metric.
    """

    def __init__(self, command: UndoOptions, text: Text) -> None:
        self._command, self._text = command, {"text": text.digest}
        self._kept = _kept(command, text)
        # Plug-ins are sought, and their code and files are hashed, once for all models.
        metrics, attacks = METRICS.find_all(command.metric, "--metric"), ATTACKS.find_all(command.attack, "--attack")
        documents = command.test_documents
        self._metrics = {
            of.reference: self._text | metric_identity(command, of.reference, documents) for of in metrics.values()
        }
        self._attacks = {of.reference: self._text | attack_identity(command, of.reference) for of in attacks.values()}
        self.main = next(iter(self._metrics))

    def measure(self, model: Stage, metric: str) -> Stage:
        """Return the stage that measures a stage's model by a metric, which is named by its reference."""
        return Stage(MEASURE, self._metrics[metric], model.seed, {"model": model})

    def of(self, model: Stage, reference: Stage) -> Measuring:
        """Return all stages that attack and measure a stage's model."""
        seed = model.seed
        measures = {metric: self.measure(model, metric) for metric in self._metrics}
        attacks, curves = {}, {}
        for name, config in self._attacks.items():
            if name in self._kept:
                attacks[name] = Stage(ATTACK, config, seed, {"model": model})
                for metric, measured in self._metrics.items():
                    parents = {"model": model, metric: measures[metric], "attack": attacks[name]}
                    curves[name, metric] = Stage(CURVES, {"measured": {metric: measured}}, seed, parents)
                continue
            whole = Stage(ATTACK, config | {"measured": self._metrics}, seed, {"model": model, **measures})
            curves |= {(name, metric): whole for metric in self._metrics}
        documents = {"documents": self._command.test_documents}
        distance = Stage(DISTANCE, self._text | documents, seed, {"model": model, "reference": reference})
        return Measuring(measures, attacks, curves, distance)


def _kept(command: UndoOptions, text: Text) -> set[str]:
    """Return the attacks whose attacked models are kept, because they are small."""
    if command.model in PACKAGED_MODELS:
        return set()
    with torch.device("meta"):
        preset = command.model in PRESETS
        model = build_model(command.model, text.tokenizer, 0) if preset else outline(command.model)
    limit = command.relearn.keep_gb * 1e9
    attacks = [attack.reference for attack in ATTACKS.find_all(command.attack, "--attack").values()]
    return {name for name in attacks if attacked_size(make_attack(command, name), model) <= limit}


def _prompts(command: UndoOptions, tokenizer: Any, count: int) -> list[Prompt]:
    """Return the prompts of the metric "completions".

    Raises:
        ValueError, OSError: if there are no prompts, or they cannot be read or are too long.
    """
    if command.prompts is not None:
        prompts = read_prompts(command.prompts)
    elif command.corpus == "word-problems":
        prompts = word_problem_prompts(count, TEXT_SEED)
    else:
        problems = written("--corpus", "word-problems")
        raise ValueError(f"{written('--metric', 'completions')} needs --prompts, except with {problems}")
    answers = tokenizer([f" {prompt.answer.strip()}" for prompt in prompts], add_special_tokens=False)["input_ids"]
    for prompt, answer, text in zip(prompts, answers, encode_prompts(tokenizer, prompts), strict=True):
        if len(answer) > command.answer:
            raise ValueError(
                f"{written('--answer', command.answer)} is too small: the answer {prompt.answer!r} has "
                f"{len(answer)} tokens"
            )
        length = len(text) + command.answer
        if length > command.length:
            raise ValueError(
                f"{written('--length', command.length)} is too small: a prompt with its answer has {length} tokens: "
                f"{prompt.text[:40]!r}"
            )
    return prompts
