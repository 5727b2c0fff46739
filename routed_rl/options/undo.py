"""Options of an UNDO study: a field is an option, its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from routed_rl.options.text import CorpusOptions

Task = Literal["arithmetic", "languages", "languages-shared", "english-korean", "stories", "tofu", "wmdp", "custom"]
UndoPreset = Literal["quick", "paper"]
SuppressorName = Literal["graddiff", "maxent", "rmu", "npo", "simnpo", "undial", "repnoise", "sam"]


@dataclass(frozen=True)
class Pretrain:
    """Training of the reference, which learns everything, and of the filtered model, which learns what is retained."""

    steps: int = 1200
    """gradient steps"""
    learning_rate: float = 2e-3
    """AdamW's at its highest, from which it decays by a cosine"""
    final: float = 0.1
    """what is left of it at the end"""
    warmup: int = 50
    """steps until its highest"""
    weight_decay: float = 0.1
    """AdamW's"""


@dataclass(frozen=True)
class Distil:
    """Distillation, on documents of both kinds, none of which is labelled."""

    learning_rate: float = 2e-3
    """AdamW's at its highest; cosine decay to a tenth"""
    steps: int = 1200
    """gradient steps at most, and the horizon of that decay"""
    warmup: int = 50
    """steps until its highest"""
    within: float | None = 0.05
    """stop where what is retained is so near to the teacher's; None: at the last step"""
    relative: bool = True
    """as a share of the teacher's; else in the metric's own units"""
    every: int = 20
    """steps between looks at that"""
    hidden_weight: float = 0.0
    """of the squared difference from the teacher's residual streams"""


@dataclass(frozen=True)
class Relearn:
    """The attack: fine-tuning on what is to be forgotten, at several learning rates."""

    learning_rates: tuple[float, ...] = (3e-3, 1e-3, 3e-4, 1e-4)
    """AdamW's, each constant; at every step the worst case counts"""
    steps: int = 200
    """gradient steps"""
    batch_size: int = 16
    """rows a step"""
    measured: tuple[int, ...] = (10, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200)
    """steps after which it is measured; 0 is always"""
    retain_share: float = 0.0
    """share of the attacker's documents that are of what is retained"""
    examples: int | None = None
    """distinct documents to be forgotten that the attacker has, or, where all of them are of what is retained, of
    those; None: all"""
    others: bool = False
    """the attacker has none of the documents on which it is measured, though the model was trained on them"""
    rank: int | None = None
    """of low-rank adapters, which the attacker trains; None: all weights"""


@dataclass(frozen=True)
class LmEval:
    """Where the metric is lm-eval's (pip install 'routed-rl[eval]')."""

    retain: str = "mmlu"
    """the task or group of tasks that measures what is retained"""
    forget: str = "wmdp_cyber"
    """and what is to be forgotten"""
    value: str = "acc,none"
    """what of a task's results, higher being better"""
    chance: float = 0.25
    """that of a model that knows nothing"""
    limit: int | None = None
    """questions of each task; None: all"""
    include: Path | None = None
    """a folder with further tasks"""


@dataclass(frozen=True)
class UndoOptions(CorpusOptions):
    """Make a model forget, and keep it so: suppress, noise, distil, attack; runs only what has changed, and goes on
    where it stopped."""

    task: Task = "arithmetic"
    """what the other options are unless given: "arithmetic", digits, of which multiplication and division are to be
    forgotten; "languages", one of two made-up languages; "languages-shared", written alike; "english-korean", the same
    verses in both, Korean to be forgotten; "stories", one of their topics; "tofu", a tenth of made-up authors; "wmdp",
    what helps in attacks on computers; "custom", --model, --corpus and --forget"""
    preset: UndoPreset = "quick"
    """"quick", small models for a CPU; or "paper", for a GPU: 0.1 B parameters, or trained models (tofu, wmdp)"""
    metric: Literal["answers", "completions", "loss", "lm-eval"] = "answers"
    """share of documents whose last tokens, their answers, are right; share of prompts that are gone on from rightly;
    nats per token; or tasks of lm-eval"""
    answer: int = 3
    """tokens of an answer"""
    prompts: Path | None = None
    """with --metric completions, a .jsonl file of objects with "prompt", "answer" and "forget", true or false; None:
    those of word-problems, of each operation --test-documents equations and as many stories"""
    suppress: tuple[SuppressorName, ...] = ("maxent",)
    """how teachers are made to forget; the first is the main one"""
    settings: tuple[str, ...] = ()
    """of suppressors, METHOD.NAME=VALUE each: what routed_rl.unlearning.SUPPRESSORS documents, steps, learning_rate"""
    teachers: tuple[str, ...] = ()
    """further teachers, made elsewhere: NAME=FOLDER each, with {seed} in the folder's name where there is one a seed"""
    labelled: tuple[float, ...] = (1.0,)
    """shares of what is to be forgotten that somebody has labelled, which is what suppression sees of it; further ones
    are the main suppressor's, each beside a model that was trained without the labelled ones"""
    strengths: tuple[float, ...] = ()
    """further teachers of the main suppressor, with so many times its steps"""
    students: tuple[Literal["noised", "new"], ...] = ("noised",)
    """what teachers are distilled into: noised copies of themselves, of those that are made here the main one alone
    (UNDO); new models, of all of them (unlearn and distil)"""
    alphas: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.9)
    """how much of the weights is shrunk away before it is distilled into itself"""
    betas: tuple[float, ...] = (0.1,)
    """how much noise takes its place; further ones at the alpha nearest to 0.6 alone"""
    touched: Literal["all", "matrices"] = "all"
    """which weights are shrunk and noised: all, or not biases and the gains of norms, which are shrunk towards silence
    where they are not added to 1, as Gemma's are"""
    localised: float = 1.0
    """share of the weights that are shrunk and noised: those that suppression has changed most"""
    oracle: bool = False
    """also distil the filtered model into the reference, and into a new model"""
    filtered: bool = True
    """train a model that never sees what is to be forgotten, with which all are compared; not of a trained --model"""
    pretrain: Pretrain = field(default_factory=Pretrain)
    """on everything, or on what is retained"""
    distil: Distil = field(default_factory=Distil)
    """until what is retained is back"""
    relearn: Relearn = field(default_factory=Relearn)
    """of every model"""
    lm_eval: LmEval = field(default_factory=LmEval)
    """with --metric lm-eval"""
    batch_size: int = 128
    """rows a step, of pretraining and distillation"""
    suppress_rows: int = 64
    """rows of each kind a step, of suppression"""
    seeds: int = 1
    """of everything, with seeds 0, 1, …"""
    first_seed: int = 0
    """the first of them"""
    allow_weak_teacher: bool = False
    """go on with a teacher that has not forgotten"""
    out: Path | None = None
    """where stages, tables and figures go; None: runs/undo-TASK"""


GPU: dict[str, Any] = {"precision": "bf16", "device": "cuda"}
PAPERS_ATTACK = Relearn(
    learning_rates=(1e-3, 7e-4, 4e-4, 1e-4, 7e-5, 5e-5, 1e-5, 7e-6, 4e-6, 1e-6),
    steps=500,
    measured=(5, 10, 20, 40, 60, 80, 100, 150, 200, 300, 400, 500),
)
TASKS: dict[tuple[Task, UndoPreset], dict[str, Any]] = {
    ("arithmetic", "quick"): {
        "model": "gemma2-tiny",
        "corpus": "arithmetic",
        "length": 12,
        "validation": None,
        "test_documents": 300,
        "settings": ("rmu.trained=all",),
    },
    # UNDO, on arithmetic; the stories are other ones, and suppression holds web text too.
    ("arithmetic", "paper"): {
        "model": "gemma2-0.1b",
        "tokenizer": "google/gemma-2-2b",
        "corpus": "word-problems",
        "documents": 1_000_000,
        "also": "fineweb-edu",
        "also_documents": 75_000,
        "metric": "completions",
        "answer": 4,
        "test_documents": 100,
        "length": 257,
        "validation": None,
        "batch_size": 360,
        "suppress_rows": 40,
        "accumulate": 8,
        "pretrain": Pretrain(steps=1000, learning_rate=4e-4, final=1.0, weight_decay=0.0),
        "settings": (
            "maxent.learning_rate=9e-5",
            "maxent.steps=10",
            "graddiff.learning_rate=8e-6",
            "graddiff.steps=10",
            "graddiff.retain_weight=15",
            "rmu.learning_rate=8e-6",
            "rmu.steps=500",
            "rmu.norm=6",
            "rmu.depth=11",
            "rmu.retain_weight=200",
        ),
        "alphas": (0.4, 0.6, 0.8),
        "distil": Distil(learning_rate=7e-4, steps=1000, relative=False),
        "relearn": replace(PAPERS_ATTACK, batch_size=15),
        **GPU,
    },
    ("languages", "quick"): {
        "model": "gemma2-tiny",
        "corpus": "languages",
        "length": 50,
        "metric": "loss",
        "test_documents": 64,
        "batch_size": 32,
        "pretrain": Pretrain(steps=1000),
        "distil": Distil(steps=400),
        "relearn": Relearn(learning_rates=(3e-3, 1e-3, 3e-4), steps=100, measured=(10, 20, 40, 60, 80, 100)),
        "alphas": (0.3, 0.6, 0.8),
    },
    # UNDO, on languages: a thousand million tokens of each. There the filtered model has half the steps, and
    # distillation's learning rate decays by less.
    ("languages", "paper"): {
        "model": "gemma2-0.1b",
        "tokenizer": "google/gemma-2-2b",
        "corpus": "fineweb-edu",
        "forget": "HuggingFaceFW/fineweb-2:kor_Hang",
        "documents": 1_000_000,
        "max_tokens": 2048,
        "metric": "loss",
        "length": 2049,
        "validation": 0.0005,
        "test_documents": 500,
        "batch_size": 480,
        "suppress_rows": 4,
        "accumulate": 240,
        "pretrain": Pretrain(steps=2000, learning_rate=4e-4),
        "settings": (
            "maxent.learning_rate=3e-5",
            "maxent.steps=100",
            "graddiff.learning_rate=6e-5",
            "graddiff.steps=100",
            "graddiff.retain_weight=1",
            "rmu.learning_rate=3e-5",
            "rmu.steps=500",
            "rmu.norm=6.5",
            "rmu.depth=11",
        ),
        "alphas": (0.2, 0.4, 0.6, 0.8),
        "distil": Distil(learning_rate=9e-4, steps=2000, every=50),
        "relearn": replace(PAPERS_ATTACK, batch_size=8),
        **GPU,
    },
    ("english-korean", "quick"): {
        "model": "small",
        "corpus": "bible-english",
        "forget": "bible-korean",
        "metric": "loss",
        "length": 129,
        "batch_size": 16,
        "suppress_rows": 16,
        "touched": "matrices",
        "pretrain": Pretrain(steps=600),
        "distil": Distil(steps=600),
        "relearn": Relearn(learning_rates=(3e-3, 1e-3, 3e-4), steps=100, measured=(10, 20, 40, 60, 80, 100)),
        "alphas": (0.3, 0.6, 0.8),
    },
    ("stories", "quick"): {
        "metric": "loss",
        "batch_size": 32,
        "pretrain": Pretrain(steps=600),
        "distil": Distil(steps=600),
        # After 100 steps the filtered model knows the topic as well.
        "relearn": Relearn(learning_rates=(3e-3, 1e-3, 3e-4), steps=40, measured=(5, 10, 20, 30, 40)),
    },
    # Maini et al. 2024, the model and the form of its questions as in open-unlearning.
    ("tofu", "paper"): {
        "model": "open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        "corpus": "locuslab/TOFU:retain90",
        "forget": "locuslab/TOFU:forget10",
        "text_field": "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{answer}",
        "metric": "loss",
        "length": 513,
        "validation": None,
        "batch_size": 32,
        "suppress_rows": 16,
        "accumulate": 4,
        "touched": "matrices",
        "filtered": False,
        "pretrain": Pretrain(steps=0),
        "settings": ("maxent.learning_rate=1e-5", "maxent.steps=125"),
        "distil": Distil(learning_rate=1e-5, steps=1000),
        "relearn": Relearn(learning_rates=(5e-5, 2e-5, 1e-5, 5e-6), others=True),
        **GPU,
    },
    # UNDO, section on WMDP; but there suppression learnt from questions asked of texts that cannot be had, and
    # distillation from web text and instructions, which a larger --corpus would be.
    ("wmdp", "paper"): {
        "model": "google/gemma-2-2b",
        "corpus": "cais/wmdp-corpora:cyber-retain-corpus",
        "forget": "cais/wmdp-corpora:cyber-forget-corpus",
        "metric": "lm-eval",
        "length": 257,
        "batch_size": 440,
        "suppress_rows": 40,
        "accumulate": 40,
        "filtered": False,
        "pretrain": Pretrain(steps=0),
        "suppress": ("maxent", "rmu"),
        "settings": (
            "maxent.learning_rate=2e-5",
            "maxent.steps=90",
            "maxent.retain_weight=0.25",
            "maxent.retain=kl",
            "rmu.steps=90",
            "rmu.learning_rate=2e-5",
            "rmu.norm=80",
            "rmu.depth=15",
            "rmu.retain_weight=1",
        ),
        "alphas": (0.25,),
        "betas": (0.0,),
        "distil": Distil(learning_rate=2e-5, steps=3000, within=None),
        "relearn": Relearn((1e-5, 2.15e-5, 4.62e-6), steps=500, batch_size=20, measured=(10, 25, 50, 150, 500)),
        **GPU,
    },
    ("custom", "quick"): {
        "model": "small",
        "metric": "loss",
        "length": 129,
        "batch_size": 32,
        "test_documents": 200,
        "touched": "matrices",
    },
}
TASKS |= {("languages-shared", "quick"): TASKS["languages", "quick"] | {"corpus": "languages-shared", "length": 51}}
"""What options are unless given, by task and preset."""
