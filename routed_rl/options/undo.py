"""Options of an UNDO study. A field is an option; its docstring is the help."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from routed_rl.options.text import DATE, SYSTEM_PROMPT, CorpusOptions
from routed_rl.paths import NameOrPath
from routed_rl.plugins import PluginName

Task = Literal["arithmetic", "languages", "languages-shared", "english-korean", "stories", "tofu", "wmdp", "custom"]
UndoPreset = Literal["quick", "paper"]


@dataclass(frozen=True)
class Pretrain:
    """Pretraining: of the reference model on all documents, of the filtered model on the retain set."""

    steps: int = 1200
    """gradient steps"""
    learning_rate: float = 2e-3
    """peak learning rate of AdamW, followed by cosine decay"""
    final: float = 0.1
    """final learning rate, as a share of the peak"""
    warmup: int = 50
    """steps of linear warm-up to the peak learning rate"""
    weight_decay: float = 0.1
    """weight decay of AdamW"""


@dataclass(frozen=True)
class Distil:
    """Distillation of a teacher into a student, on documents of both sets. No document is labelled."""

    learning_rate: float = 2e-3
    """peak learning rate of AdamW; cosine decay to a tenth"""
    steps: int = 1200
    """maximum number of gradient steps, over which the learning rate decays"""
    warmup: int = 50
    """steps of linear warm-up to the peak learning rate"""
    within: float | None = 0.05
    """largest distance from the teacher's retain performance at which distillation stops; None: do all steps"""
    relative: bool = True
    """give --distil.within as a share of the teacher's retain performance; else in the metric's own units"""
    every: int = 20
    """steps between measurements of the retain performance"""
    metric: PluginName | None = None
    """metric of the retain performance; None: the first of --metric"""
    documents: int = 200
    """number of retain documents on which it is measured; --test-documents changes nothing here"""
    least: int = 60
    """smallest number of gradient steps; where noise costs little, a student would else stop without distillation"""
    hidden_weight: float = 0.0
    """weight of the squared difference from the teacher's residual streams"""


@dataclass(frozen=True)
class Relearn:
    """Relearning attack: fine-tuning on the forget set, at several learning rates."""

    learning_rates: tuple[float, ...] = (3e-3, 1e-3, 3e-4, 1e-4)
    """learning-rate sweep: constant learning rates of AdamW; within N steps, the attacker's best rate and best step
    count"""
    steps: int = 200
    """attack steps"""
    batch_size: int = 16
    """rows per attack step"""
    measured: tuple[int, ...] = (10, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200)
    """attack steps after which the model is measured; step 0 is always measured"""
    retain_share: float = 0.0
    """share of the attacker's documents that are retain documents"""
    examples: int | None = None
    """number of distinct forget documents that the attacker has, or of retain documents if --relearn.retain-share is 1;
    None: all"""
    others: bool = False
    """give the attacker none of the documents on which models are measured, though the reference was trained on them"""
    rank: int | None = None
    """rank of low-rank adapters, which the attacker trains instead of all weights; None: all weights"""
    keep_gb: float = 1.0
    """largest size, in GB, of what one attack makes of one model, up to which it is kept. Kept models are not attacked
    again for another --metric or other --test-documents"""


@dataclass(frozen=True)
class LmEval:
    """The metric lm-eval, which needs pip install 'routed-rl[eval]'."""

    retain: str = "mmlu"
    """task or group of tasks that measures the retain performance"""
    forget: str = "wmdp_cyber"
    """task or group of tasks that measures the forget performance"""
    value: str = "acc,none"
    """name of the value in a task's results; higher values must be better"""
    chance: float = 0.25
    """value of a model that knows nothing"""
    limit: int | None = None
    """questions of each task; None: all"""
    include: Path | None = None
    """folder with further tasks; None: only the tasks of lm-eval"""


@dataclass(frozen=True)
class UndoOptions(CorpusOptions):
    """Make a model forget, and make that robust (UNDO): suppress, add noise, distil, attack. Only what has changed is
    run, and an interrupted study continues."""

    task: Task = "arithmetic"
    """default values of the other options: "arithmetic" (forget multiplication and division), "languages" (forget one
    of two made-up languages), "languages-shared" (the same, both in the same letters), "english-korean" (the same
    verses in two languages; forget Korean), "stories" (forget one of their topics), "tofu" (forget a tenth of made-up
    authors), "wmdp" (forget what helps attacks on computers) or "custom" (your own --model, --corpus and --forget)"""
    preset: UndoPreset = "quick"
    """"quick": small models for a CPU; "paper": for a GPU, models of 0.1 B parameters or pretrained models (tofu,
    wmdp)"""
    metric: tuple[PluginName, ...] = ("answers",)
    """one or more metrics; figures show the first one. "answers": share of documents whose last tokens are predicted
    correctly; "completions": share of prompts that are completed correctly; "loss": nats per token; "lm-eval": tasks of
    lm-eval; or MODULE:CLASS, a routed_rl.unlearning.Metric of your own"""
    answer: int = 3
    """tokens of an answer"""
    prompts: Path | None = None
    """with --metric completions, a .jsonl file of objects with "prompt", "answer" and "forget" (true or false); None:
    prompts of word-problems, for each operation --test-documents equations and as many stories"""
    suppress: tuple[PluginName, ...] = ("maxent",)
    """suppressors, which make the teachers; the first one is the main suppressor: graddiff, maxent, rmu, npo, simnpo,
    undial, repnoise, sam, grad-ascent, wga, satimp, ceu, pdu, idk-nll, idk-dpo, alt-po, repselect, circuit-breaker,
    lat; the name of a method in an installed package; or MODULE:CLASS, your own class in a module in the working
    directory, or FOLDER/MODULE:CLASS. idk-nll and idk-dpo need forget documents that are questions with answers;
    alt-po needs answers that only unlearn(…) takes"""
    settings: tuple[str, ...] = ()
    """settings of suppressors, each METHOD.NAME=VALUE; METHOD is as in --suppress, and CLASS for MODULE:CLASS; NAME is
    steps, learning_rate, or an attribute of the method's class"""
    teachers: tuple[str, ...] = ()
    """further teachers, made elsewhere, each NAME=FOLDER; write {seed} in FOLDER if there is one teacher per seed"""
    labelled: tuple[float, ...] = (1.0,)
    """shares of the forget set that are labelled; suppressors see labelled documents only. Further shares are for the
    main suppressor alone; for each share below 1, a model is also trained without the labelled documents"""
    strengths: tuple[float, ...] = ()
    """further teachers of the main suppressor; a strength is a factor on its number of steps"""
    students: tuple[Literal["noised", "new"], ...] = ("noised",)
    """students that teachers are distilled into: "noised", a noised copy of the teacher (UNDO), only for the main
    teacher and --teachers; "new", a new model (unlearn and distil), for all teachers"""
    alphas: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.9)
    """noise levels α of noised copies: each weight w becomes (1 - α) w + α β noise"""
    betas: tuple[float, ...] = (0.1,)
    """scales β of the noise in this formula; further values are used only at the α nearest to 0.6"""
    touched: Literal["all", "matrices"] = "all"
    """which weights are shrunk and noised: all, or only matrices, which leaves out biases and the gains of norms.
    Shrunk gains silence a model, unless they are added to 1 as in Gemma"""
    localised: float = 1.0
    """share of the weights that are shrunk and noised: those that suppression has changed most"""
    oracle: bool = False
    """also distil the filtered model into the reference model and into a new model"""
    filtered: NameOrPath | None = "train"
    """the filtered model, which never saw the forget set, and with which all models are compared: "train" trains one,
    which is impossible for a pretrained --model; or a folder or a name on the Hub, with {seed} if there is one per
    seed; None: there is none"""
    filtered_tokens: int | None = None
    """number of tokens on which a --filtered model from elsewhere was trained, to compare compute; None: unknown"""
    tune: float | None = None
    """first try several learning rates, numbers of steps and retain weights of each suppressor around its --settings,
    on documents that are not reported, and use those that forget most and keep this share of the retain performance,
    such as 0.9; None: use --settings"""
    pretrain: Pretrain = field(default_factory=Pretrain)
    """pretraining of the reference and the filtered model"""
    distil: Distil = field(default_factory=Distil)
    """distillation, until the retain performance is back"""
    attack: tuple[PluginName, ...] = ("relearn",)
    """one or more attacks on every model; figures show the first one. "relearn": fine-tuning on the forget set; or
    MODULE:CLASS, a routed_rl.unlearning.Attack of your own"""
    relearn: Relearn = field(default_factory=Relearn)
    """relearning attack"""
    lm_eval: LmEval = field(default_factory=LmEval)
    """with --metric lm-eval: tasks and values"""
    rank: int | None = None
    """rank of low-rank adapters, which suppression and distillation train instead of all weights, and which are then
    merged; None: all weights"""
    master_weights: bool = True
    """for a model in half precision: train float32 weights, and round the result. Otherwise weights are trained as they
    are, and small steps are rounded away"""
    checkpointing: bool = False
    """gradient checkpointing, to save memory: compute each block again in the backward pass. Results are the same"""
    processes: int = 1
    """number of processes that train each model together; with --device cuda, each has a GPU of its own. The model in
    training is divided among them (fully_shard); a teacher or reference is whole on each. Results are the same within
    rounding"""
    batch_size: int = 128
    """rows per step of pretraining and distillation"""
    suppress_rows: int = 64
    """rows of each kind (forget, retain) per step of suppression"""
    seeds: int = 1
    """number of models of each kind, with seeds 0, 1, …"""
    first_seed: int = 0
    """first seed, in place of 0"""
    allow_weak_teacher: bool = False
    """distil a teacher even if it has not forgotten"""
    out: Path | None = None
    """directory of stages, tables and figures; None: runs/undo-TASK"""


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
        "length": 11,
        "validation": None,
        "test_documents": 300,
        "distil": Distil(documents=300),
        "settings": ("rmu.trained=all",),
    },
    # UNDO on arithmetic, with two differences: other stories, and suppression retains web text too.
    ("arithmetic", "paper"): {
        "model": "gemma2-0.1b",
        "tokenizer": "google/gemma-2-2b",
        "corpus": "word-problems",
        "documents": 1_000_000,
        "also": "fineweb-edu",
        "also_documents": 75_000,
        "metric": ("completions",),
        "answer": 4,
        "test_documents": 100,
        "length": 256,
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
        "distil": Distil(learning_rate=7e-4, steps=1000, relative=False, documents=100),
        "relearn": replace(PAPERS_ATTACK, batch_size=15),
        **GPU,
    },
    ("languages", "quick"): {
        "model": "gemma2-tiny",
        "corpus": "languages",
        "length": 49,
        "metric": ("loss",),
        "test_documents": 64,
        "batch_size": 32,
        "pretrain": Pretrain(steps=1000),
        "distil": Distil(steps=400, documents=64),
        "relearn": Relearn(learning_rates=(3e-3, 1e-3, 3e-4), steps=100, measured=(10, 20, 40, 60, 80, 100)),
        "alphas": (0.3, 0.6, 0.8),
    },
    # UNDO on languages: a thousand million tokens of each. In the paper the filtered model is trained for half the
    # steps, and the learning rate of distillation decays less.
    ("languages", "paper"): {
        "model": "gemma2-0.1b",
        "tokenizer": "google/gemma-2-2b",
        "corpus": "fineweb-edu",
        "forget": "HuggingFaceFW/fineweb-2:kor_Hang",
        "documents": 1_000_000,
        "max_tokens": 2048,
        "metric": ("loss",),
        "length": 2048,
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
        "distil": Distil(learning_rate=9e-4, steps=2000, every=50, documents=500),
        "relearn": replace(PAPERS_ATTACK, batch_size=8),
        **GPU,
    },
    ("english-korean", "quick"): {
        "model": "small",
        "corpus": "bible-english",
        "forget": "bible-korean",
        "metric": ("loss",),
        "length": 128,
        "batch_size": 16,
        "suppress_rows": 16,
        "touched": "matrices",
        "pretrain": Pretrain(steps=600),
        "distil": Distil(steps=600),
        "relearn": Relearn(learning_rates=(3e-3, 1e-3, 3e-4), steps=100, measured=(10, 20, 40, 60, 80, 100)),
        "alphas": (0.3, 0.6, 0.8),
    },
    ("stories", "quick"): {
        "metric": ("loss",),
        "batch_size": 32,
        "pretrain": Pretrain(steps=600),
        "distil": Distil(steps=600),
        # The attack is short: after 100 steps the filtered model has relearned the topic too.
        "relearn": Relearn(learning_rates=(3e-3, 1e-3, 3e-4), steps=40, measured=(5, 10, 20, 30, 40)),
    },
    # Maini et al. 2024; the model and the format of its questions, that of Llama 3, are those of open-unlearning.
    ("tofu", "paper"): {
        "model": "open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        "corpus": "locuslab/TOFU:retain90",
        "forget": "locuslab/TOFU:forget10",
        "text_field": "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        f"Today Date: {DATE:%d %b %Y}\n\n{SYSTEM_PROMPT}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{answer}",
        "metric": ("loss",),
        "length": 512,
        "validation": None,
        "batch_size": 32,
        "suppress_rows": 16,
        "accumulate": 4,
        "touched": "matrices",
        "filtered": None,
        "pretrain": Pretrain(steps=0),
        "settings": ("maxent.learning_rate=1e-5", "maxent.steps=125"),
        "distil": Distil(learning_rate=1e-5, steps=1000),
        "relearn": Relearn(learning_rates=(5e-5, 2e-5, 1e-5, 5e-6), others=True),
        **GPU,
    },
    # UNDO, section on WMDP, with two differences. There suppression uses questions about texts that are not public.
    # Distillation uses web text and instructions, which a larger --corpus would provide.
    ("wmdp", "paper"): {
        "model": "google/gemma-2-2b",
        "corpus": "cais/wmdp-corpora:cyber-retain-corpus",
        "forget": "cais/wmdp-corpora:cyber-forget-corpus",
        "metric": ("lm-eval",),
        "length": 256,
        "batch_size": 440,
        "suppress_rows": 40,
        "accumulate": 40,
        "filtered": None,
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
        "metric": ("loss",),
        "length": 128,
        "batch_size": 32,
        "test_documents": 200,
        "touched": "matrices",
    },
}
TASKS |= {("languages-shared", "quick"): TASKS["languages", "quick"] | {"corpus": "languages-shared", "length": 50}}
"""Default values of the options, by task and preset."""
