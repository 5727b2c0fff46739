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
    encode_prompt,
    read_prompts,
    word_problem_prompts,
)
from routed_rl.lm.folders import outline
from routed_rl.lm.inputs import TEXT_SEED, Text, text_identity
from routed_rl.options.undo import UndoOptions
from routed_rl.runs import Stage
from routed_rl.unlearning.attacks import Attack, Relearning, attacked_size
from routed_rl.unlearning.metrics import Answers, Completions, Harness, Loss, Metric

METRICS = ("answers", "completions", "loss", "lm-eval")
ATTACKS = ("relearn",)
MEASURE, ATTACK, CURVES, DISTANCE = "measure", "attack", "curves", "distance"
"""Kinds of stages: of a model, the metric; of a model, attacked models; of these, the metric; of a model, how far it is
from the reference model. An attack whose models are not kept measures them itself."""
MEASURES = (MEASURE, ATTACK, CURVES, DISTANCE)


def make_metric(command: UndoOptions, tokenizer: Any, name: str, documents: int) -> Metric:
    """Return a metric by its name.

    Args:
        documents: number of documents of each kind; prompts of word-problems are as many.

    Raises:
        ValueError, OSError: for an unknown name, or prompts that cannot be read.
    """
    if name == "loss":
        return Loss()
    if name == "answers":
        return Answers(command.answer)
    if name == "completions":
        return Completions(_prompts(command, tokenizer, documents), command.answer)
    if name == "lm-eval":
        return Harness(command.lm_eval)
    raise ValueError(f"--metric must be one of {', '.join(METRICS)}, got {name!r}")


def metric_identity(command: UndoOptions, name: str, documents: int) -> dict[str, Any]:
    """Return what a measured number depends on, besides the model and the text."""
    found: dict[str, Any] = {"metric": name}
    if name == "lm-eval":
        tasks = command.lm_eval
        include = None if tasks.include is None else text_identity(str(tasks.include))
        return found | {"lm_eval": [tasks.retain, tasks.forget, tasks.value, tasks.limit, include]}
    found["documents"] = documents
    if name in ("answers", "completions"):
        found["answer"] = command.answer
    if name == "completions":
        found["prompts"] = None if command.prompts is None else text_identity(str(command.prompts))
    return found


def make_attack(command: UndoOptions, name: str, accumulate: int = 1) -> Attack:
    """Return an attack by its name; ValueError for an unknown one."""
    if name == "relearn":
        return Relearning(command.relearn, accumulate, command.precision)
    raise ValueError(f"--attack must be one of {', '.join(ATTACKS)}, got {name!r}")


def attack_identity(command: UndoOptions, name: str) -> dict[str, Any]:
    """Return what an attack depends on, besides the model and the text."""
    relearning = asdict(command.relearn)
    del relearning["keep_gb"]
    found: dict[str, Any] = {"attack": name, "length": command.length, "pack": command.pack}
    if command.relearn.others:  # the attacker has none of the documents on which models are measured
        found["documents"] = command.test_documents
    # The attacker's documents and batches are those of the options of relearning, whatever the attack.
    return found | {"relearn": relearning, "precision": command.precision}


@dataclass(frozen=True, eq=False)
class Measuring:
    """The stages that attack and measure a model.

    Attributes:
        measures: the model's performance, by metric.
        attacks: the attacked models that are kept, by attack.
        curves: the performance during an attack, by attack and metric.
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
    """Makes the stages that attack and measure models."""

    def __init__(self, command: UndoOptions, text: Text) -> None:
        self._command, self._text = command, {"text": text.digest}
        self._kept = _kept(command, text)

    def measure(self, model: Stage, metric: str) -> Stage:
        """Return the stage that measures a stage's model by a metric."""
        return Stage(MEASURE, self._text | self._identity(metric), model.seed, {"model": model})

    def of(self, model: Stage, reference: Stage) -> Measuring:
        """Return all stages that attack and measure a stage's model."""
        command, seed = self._command, model.seed
        measures = {metric: self.measure(model, metric) for metric in command.metric}
        attacks, curves = {}, {}
        for name in command.attack:
            config = self._text | attack_identity(command, name)
            if name in self._kept:
                attacks[name] = Stage(ATTACK, config, seed, {"model": model})
            for metric in command.metric:
                parents = {"model": model, "before": measures[metric]}
                curves[name, metric] = (
                    Stage(CURVES, self._text | self._identity(metric), seed, {**parents, "attack": attacks[name]})
                    if name in attacks
                    else Stage(ATTACK, config | self._identity(metric), seed, parents)
                )
        documents = {"documents": command.test_documents}
        distance = Stage(DISTANCE, self._text | documents, seed, {"model": model, "reference": reference})
        return Measuring(measures, attacks, curves, distance)

    def _identity(self, metric: str) -> dict[str, Any]:
        return metric_identity(self._command, metric, self._command.test_documents)


def _kept(command: UndoOptions, text: Text) -> set[str]:
    """Return the attacks whose attacked models are kept, because they are small."""
    if command.model in PACKAGED_MODELS:
        return set()
    with torch.device("meta"):
        preset = command.model in PRESETS
        model = build_model(command.model, text.tokenizer, 0) if preset else outline(command.model)
    limit = command.relearn.keep_gb * 1e9
    return {name for name in command.attack if attacked_size(make_attack(command, name), model) <= limit}


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
        raise ValueError("--metric completions needs --prompts, except with --corpus word-problems")
    for prompt in prompts:
        answer = len(tokenizer.encode(f" {prompt.answer.strip()}", add_special_tokens=False))
        if answer > command.answer:
            raise ValueError(
                f"--answer {command.answer} is too small: the answer {prompt.answer!r} has {answer} tokens"
            )
        length = len(encode_prompt(tokenizer, prompt)) + command.answer
        if length > command.length:
            raise ValueError(
                f"--length {command.length} is too small: a prompt with its answer has {length} tokens: "
                f"{prompt.text[:40]!r}"
            )
    return prompts
