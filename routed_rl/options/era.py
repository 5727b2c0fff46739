"""Options of Expand-Route-Ablate, for one model and for a study. A field is an option; its docstring is the help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from routed_rl.options import RUNS
from routed_rl.options.text import CorpusOptions

UnlearnMethod = Literal["base", "filtering", "control", "era", "demix", "rmu"]
EraMethod = Literal[
    "base",
    "control",
    "filtering",
    "rmu",
    "demix",
    "era",
    "era-parameter",
    "era-forward",
    "era-chosen",
    "control-chosen",
    "era+rmu",
]


@dataclass(frozen=True)
class Repair:
    """Repair: fine-tuning on retain documents after ablation (gradient routing, section C)."""

    documents: int = 64
    """number of retain documents of the repair, in one batch"""
    selection: int = 200
    """number of further retain documents, whose loss selects the best step"""
    steps: int = 20
    """maximum number of gradient steps"""
    learning_rate: float = 3e-4
    """learning rate of AdamW"""
    chosen: int = 0
    """number of documents of a second repair, in batches of --repair.documents, at the learning rate of training; the
    method chooses them from twice as many unlabelled documents, as those whose loss ablation raised least; 0: no second
    repair"""
    chosen_steps: int = 125
    """gradient steps of the second repair"""


@dataclass(frozen=True)
class Attack:
    """Relearning attack: fine-tuning on a few held-out forget documents, in one batch."""

    documents: tuple[int, ...] = (4, 16, 64)
    """number of forget documents that the attacker has; each number is an attack of its own"""
    steps: int = 20
    """maximum number of attack steps"""
    learning_rate: float = 5e-4
    """learning rate of AdamW"""
    every: int = 4
    """attack steps between measurements"""
    repeats: int = 1
    """number of attacks on different documents, whose results are averaged"""


@dataclass(frozen=True)
class Rmu:
    """RMU, the published baseline: the residual stream of forget documents is pushed in a random direction."""

    depth: int = 3
    """number of blocks before the residual stream that is pushed; only their MLPs' output projections are trained"""
    norm: float = 100.0
    """norm of the random vector to which the residual stream is pushed"""
    retain_weight: float = 50.0
    """weight of the loss that holds the residual stream of other documents in place"""
    steps: int = 200
    """gradient steps"""
    learning_rate: float = 1e-3
    """learning rate of AdamW"""
    batch_size: int = 32
    """rows of each kind (labelled, not labelled) per step"""


@dataclass(frozen=True)
class TextOptions(CorpusOptions):
    """A corpus and a model; how the topic is routed, ablated, and attacked."""

    mode: Literal["activation", "parameter", "forward"] = "activation"
    """how gradients are routed (docs/routing.md); forward also keeps activations of weight 0 out of the forward pass"""
    alpha: float | None = None
    """weight with which original units learn the topic's own words in labelled documents; None: -0.75 in mode
    activation (as the paper), else 0"""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """blocks whose MLPs are expanded"""
    units: int = 64
    """number of new units in each expanded MLP"""
    bias: float = 4.0
    """bias in the formula of the token weights; a lower bias routes more words"""
    l1: float = 1e-4
    """weight of the L1 penalty on hidden activations of expanded MLPs"""
    projections: str | None = None
    """names of the MLPs' projections, with {} for the layer, such as "layers.{}.mlp.up:layers.{}.mlp.down"; a gated MLP
    has two before the colon, "layers.{}.mlp.gate,layers.{}.mlp.up:layers.{}.mlp.down"; None: found by structure"""
    adapters: int | None = None
    """rank of two routed low-rank adapters, which are trained instead of the model's weights; one adapter is kept, one
    is deleted; None: no adapters"""
    steps: int = 600
    """gradient steps of training"""
    batch_size: int = 32
    """rows per step, over all devices"""
    learning_rate: float = 2e-3
    """peak learning rate of AdamW; cosine decay to a tenth"""
    warmup: int = 50
    """steps of linear warm-up to the peak learning rate"""
    repair: Repair = field(default_factory=Repair)
    """repair of the ablated model"""
    attack: Attack = field(default_factory=Attack)
    """relearning attack on the finished model"""
    rmu: Rmu = field(default_factory=Rmu)
    """RMU, the baseline"""


EraPreset = Literal["stories", "tinystories", "virology"]
PRESETS: Mapping[EraPreset, dict[str, Any]] = {
    "stories": {},
    # Gradient routing, section C.
    "tinystories": {
        "model": "stories-28m",
        "corpus": "tinystories",
        "documents": 405_000,
        "words": ("forest",),
        "validation": 0.0125,
        "max_characters": 1029,
        "max_tokens": 256,
        "tokenizer": "EleutherAI/gpt-neo-125M",
        "length": 256,
        "test_documents": 1000,
        "layers": (0, 1, 2, 3, 4),
        "units": 64,
        "steps": 5000,
        "batch_size": 80,
        "learning_rate": 5e-4,
        "warmup": 100,
        "repair": Repair(selection=1000, steps=40, learning_rate=5e-5),
        "attack": Attack(documents=(1, 4, 16, 64), steps=40, learning_rate=5e-5, every=1, repeats=5),
        "rmu": Rmu(depth=6, retain_weight=200.0, steps=500, learning_rate=5e-4, batch_size=40),
    },
    # Gradient routing, section E, with two differences. Repair and attack have the same number of documents, the same
    # number of steps and the same learning rate. The user names the corpus: half of the paper's is not public.
    "virology": {
        "model": "starcoder2-0.7b",
        "corpus": "fineweb-edu",
        "documents": 13_000_000,
        "tokens": ("virology",),
        "validation": 0.001,
        "tokenizer": "Qwen/Qwen2-0.5B",
        "length": 1025,
        "test_documents": 600,
        "alpha": -5e-8,
        "layers": tuple(range(8)),
        "units": 80,
        "l1": 1e-7,
        "steps": 10_000,
        "batch_size": 1280,
        "learning_rate": 1.8e-3,
        "warmup": 2000,
        "accumulate": 16,
        "precision": "bf16",
        "repair": Repair(documents=64, selection=200, steps=20, learning_rate=6e-5),
        "attack": Attack(documents=(2, 64), steps=20, learning_rate=6e-5, every=1, repeats=5),
    },
}
"""Default values of the options, by preset."""
NOT_IDENTITY = ("seed", "out", "force", "corpora", "shard", "accumulate")
"""Options that are not part of a run's configuration. They change results by rounding at most."""


@dataclass(frozen=True)
class Unlearn(TextOptions):
    """Train a language model, remove a topic from it, and attack it. An interrupted run continues. On several devices:
    torchrun --nproc-per-node N -m routed_rl.experiments.cli unlearn …"""

    method: UnlearnMethod = "era"
    """"era": expand, route, ablate; "control": the same without routing; "demix": an expert for labelled documents,
    which is deleted; "filtering": training without labelled documents; "base": training on all documents; "rmu": RMU
    after training on all documents, or on a pretrained --model with --steps 0"""
    labelled: float = 0.5
    """share of forget documents that are labelled; all other documents count as retain documents"""
    seed: int = 0
    """seed of all random numbers"""
    preset: EraPreset = "stories"
    """default values of the other options: "stories" (a minute on one core), "tinystories" (gradient routing, section
    C) or "virology" (section E)"""
    shard: bool = False
    """under torchrun: divide gradients and optimizer state among the devices, and the model during training"""
    out: Path | None = None
    """directory of the run; None: runs/unlearn-METHOD-CONFIGHASH-sSEED"""
    force: bool = False
    """start over; the old directory gets another name"""

    def config(self) -> dict[str, Any]:
        """Return the options that determine the run together with the seed, as JSON.

        A folder in ``model`` is still a path here; the caller replaces it.
        """
        return {key: value for key, value in asdict(self).items() if key not in NOT_IDENTITY}


@dataclass(frozen=True)
class EraOptions(TextOptions):
    """Compare methods that remove a topic from a language model, over shares of labels and seeds. An interrupted study
    continues."""

    methods: tuple[EraMethod, ...] = (
        "base", "control", "filtering", "rmu", "demix", "era", "era-chosen", "era+rmu",
    )  # fmt: skip
    """methods to compare; era-parameter, era-forward and control-chosen can be added. Each is trained at every share of
    labels, with three exceptions: base and control use no labels, and era+rmu is trained at the largest share only"""
    labelled: tuple[float, ...] = (0.25, 0.5, 1.0)
    """shares of forget documents that are labelled"""
    seeds: int = 3
    """number of models of each method and share, with seeds 0, 1, …"""
    preset: EraPreset = "stories"
    """default values of the other options: "stories" (minutes on a CPU), "tinystories" (gradient routing, section C) or
    "virology" (section E)"""
    out: Path = RUNS / "era"
    """directory of runs, tables and figures"""
