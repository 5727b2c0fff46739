"""Options of the unlearning arena. A field is an option; its docstring is the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from routed_rl.paths import NameOrPath
from routed_rl.plugins import PluginName

Before = Literal["none", "era"]
Then = Literal["none", "undo", "distil"]


@dataclass(frozen=True)
class Routing:
    """Expand, Route, Ablate, with --before era. Each block gets as many new hidden units as it has. They learn the
    forget documents while the model is trained. They are then removed, and the rest is repaired."""

    mode: Literal["forward", "activation", "parameter"] = "forward"
    """"forward": forget documents pass through the new units alone; "activation", "parameter": they pass through all
    units, and train only the new ones"""
    words: Literal["all", "own"] = "all"
    """words of forget documents that are routed; "own": those that are rarer in other documents"""
    repair_steps: int = 60
    """maximum number of gradient steps of the repair, each on half of the retain documents"""
    repair_learning_rate: float = 3e-4
    """its learning rate, constant"""


@dataclass(frozen=True)
class Student:
    """Distillation of an unlearned model, with --then undo or distil, on all documents. No document is labelled."""

    learning_rate: float = 2e-3
    """peak learning rate of AdamW; cosine decay to a tenth"""
    steps: int = 600
    """maximum number of gradient steps, over which the learning rate decays"""
    within: float | None = 0.05
    """distillation stops when the retain loss is at most this share above the unlearned model's; None: do all steps"""
    least: int = 60
    """smallest number of gradient steps"""


@dataclass(frozen=True)
class ArenaOptions:
    """Unlearn a benchmark by many methods, attack every model, and rank them in one table. Only what has changed is
    run, and an interrupted study continues."""

    benchmark: PluginName = "tofu-small"
    """a benchmark: tofu-small, muse-small, choice-small (generated, for small models that are trained here); tofu,
    muse, wmdp (from the Hugging Face Hub or --data, for your --model); custom (your own files in --data); or
    MODULE:CLASS, a routed_rl.unlearning.benchmarks.BenchmarkKind of your own"""
    split: str | None = None
    """split of the benchmark; None: its usual one"""
    data: NameOrPath | None = None
    """folder or file with the benchmark's data; None: the Hub, or generated"""
    model: NameOrPath | None = None
    """the model to unlearn, which knows the benchmark: a folder or a name on the Hub, with {seed} if there is one per
    seed; None: one is trained on a generated or custom benchmark"""
    retrained: NameOrPath | None = None
    """with --model, the model that never learned the forget set, with which others are compared: a folder or a name on
    the Hub, with {seed} if there is one per seed; None: scores that need it are left out"""
    system_prompt: str | None = None
    """with --model, the system prompt of questions; "": none. None: the benchmark's own (tofu: "You are a helpful
    assistant.", for models whose chat template takes one)"""
    question_format: str | None = None
    """with --model, what a question looks like, with "{question}" in it, in place of the model's chat template; None:
    the chat template, or for a model without one the benchmark's own (tofu: "Question: {question}\\nAnswer: ")"""
    methods: tuple[PluginName, ...] = ("graddiff", "npo", "simnpo", "rmu", "maxent")
    """unlearning methods: names in routed_rl.unlearning.SUPPRESSORS, or MODULE:CLASS"""
    settings: tuple[str, ...] = ()
    """settings of methods, each METHOD.NAME=VALUE; NAME is steps, learning_rate, or an attribute of the method's class.
    They replace those of the benchmark's own recipes"""
    before: tuple[Before, ...] = ("none",)
    """how a model is prepared before unlearning: "none"; or "era", Expand, Route, Ablate while it is trained, which is
    also in the table alone. For models that are trained here"""
    then: tuple[Then, ...] = ("none", "undo")
    """what follows each method: "none"; "undo", distillation into a noised copy (UNDO); "distil", distillation into a
    new model"""
    alphas: tuple[float, ...] = (0.6,)
    """noise levels α of --then undo: each weight w becomes (1 - α) w + α β noise"""
    beta: float = 0.1
    """scale β of the noise in this formula"""
    student: Student = field(default_factory=Student)
    """distillation"""
    routing: Routing = field(default_factory=Routing)
    """routing, with --before era"""
    attacks: tuple[PluginName, ...] = ("fine-tuning", "held-out-facts", "quantisation")
    """attacks on every model: names in routed_rl.unlearning.arena.ARENA_ATTACKS, or MODULE:CLASS"""
    budget: int = 200
    """gradient steps that an attack may spend, in all its attempts together"""
    learning_rates: tuple[float, ...] = ()
    """learning rates of attacks that fine-tune, one attempt each, in place of their own; large models need lower ones,
    such as 1e-4 3e-5 1e-5"""
    scores: tuple[PluginName, ...] = ()
    """scores of every model; none given: all that are defined for the benchmark"""
    main: PluginName | None = None
    """the score by which attacks are measured and models ranked, one that rises with what a model knows of the forget
    set; None: the benchmark's own"""
    trust: bool = False
    """also measure how far each score can be trusted: all scores again of every model that is not distilled, once with
    its weights rounded to 4 bits, and once fine-tuned on the forget set with a quarter of --budget; saves them all"""
    keep: float = 0.8
    """share of the model utility that a model must keep to be ranked before those that do not"""
    batch_size: int = 16
    """rows per gradient step, of each set"""
    rank: int | None = None
    """rank of low-rank adapters that unlearning and distillation train; they are then merged. None: all weights"""
    master_weights: bool = True
    """for a model in half precision: train float32 weights, and round the result"""
    checkpointing: bool = False
    """gradient checkpointing, to save memory: compute each block again in the backward pass"""
    accumulate: int = 1
    """equal parts in which a batch of unlearning, distillation or a fine-tuning attack is computed, to save memory"""
    seeds: int = 1
    """number of models of each kind, with seeds 0, 1, …"""
    first_seed: int = 0
    """first seed, in place of 0"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device on which models are trained"""
    out: Path | None = None
    """directory of stages, tables and figures; None: runs/arena-BENCHMARK"""
