"""Options of Expand-Route-Ablate: of one model, and of a study. A field is an option, its docstring the help."""

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
    """Coherence fine-tuning after ablation (gradient routing, section C)."""

    documents: int = 64
    """how many, in one batch, that are known to be fine"""
    selection: int = 200
    """further such documents, on which the best step is chosen"""
    steps: int = 20
    """gradient steps at most"""
    learning_rate: float = 3e-4
    """AdamW's"""
    chosen: int = 0
    """then as many documents that nobody labelled, in batches of --repair.documents, at the learning rate of training:
    of twice as many, those on which the loss is least above what it was before the units were cut out"""
    chosen_steps: int = 125
    """gradient steps on these"""


@dataclass(frozen=True)
class Attack:
    """Relearning: fine-tuning on a few held-out documents of the topic, in one batch."""

    documents: tuple[int, ...] = (4, 16, 64)
    """how many; each number is an attack of its own"""
    steps: int = 20
    """gradient steps at most"""
    learning_rate: float = 5e-4
    """AdamW's"""
    every: int = 4
    """steps between measurements"""
    repeats: int = 1
    """attacks with other documents, which are averaged"""


@dataclass(frozen=True)
class Rmu:
    """Representation misdirection: the published baseline."""

    depth: int = 3
    """blocks before the residual stream that is pushed; the MLPs' output projections in them learn"""
    norm: float = 100.0
    """how far it is pushed"""
    retain_weight: float = 50.0
    """weight of holding it where it was on other documents"""
    steps: int = 200
    """gradient steps"""
    learning_rate: float = 1e-3
    """AdamW's"""
    batch_size: int = 32
    """rows of each kind"""


@dataclass(frozen=True)
class TextOptions(CorpusOptions):
    """And how the topic is kept apart while the model is trained, cut out, and what is done then."""

    mode: Literal["activation", "parameter", "forward"] = "activation"
    """how gradients are routed (docs/routing.md); forward also keeps activations of weight 0 out of the forward pass"""
    alpha: float | None = None
    """weight with which original units learn the topic's own words in labelled documents; None: -0.75 (the paper), in
    other modes 0"""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """blocks whose MLPs are expanded"""
    units: int = 64
    """new hidden units in each"""
    bias: float = 4.0
    """of the words' weights: with a lower one, more of them are routed"""
    l1: float = 1e-4
    """L1 penalty on the hidden activations there"""
    projections: str | None = None
    """where the MLPs of a model of an unknown type are: "layers.{}.mlp.up:layers.{}.mlp.down", {} for the layer"""
    adapters: int | None = None
    """rank of routed low-rank adapters, which are trained instead of the model: one is kept, one deleted"""
    steps: int = 600
    """gradient steps"""
    batch_size: int = 32
    """rows a step, over all devices"""
    learning_rate: float = 2e-3
    """AdamW's at its highest; cosine decay to a tenth"""
    warmup: int = 50
    """steps until there"""
    repair: Repair = field(default_factory=Repair)
    """after ablation"""
    attack: Attack = field(default_factory=Attack)
    """of the finished model"""
    rmu: Rmu = field(default_factory=Rmu)
    """the baseline's"""


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
    # Gradient routing, section E, but for two things: repair and attack have as many documents and steps, and the same
    # learning rate; and the corpus, half of which cannot be had without asking, is the user's to name.
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
"""What options are unless given, by preset."""
NOT_IDENTITY = ("seed", "out", "force", "corpora", "shard", "accumulate")
"""Options that are not part of a run's configuration: what they change is rounding."""


@dataclass(frozen=True)
class Unlearn(TextOptions):
    """Train a language model, take a topic out of it, attack it; continues a run that was interrupted. On many devices:
    torchrun --nproc-per-node N -m routed_rl.experiments.cli unlearn …"""

    method: UnlearnMethod = "era"
    """expand, route, ablate; its control without routing; an expert for labelled documents (demix); training without
    labelled documents (filtering); on all of them (base); and RMU, after that or on a trained --model with --steps 0"""
    labelled: float = 0.5
    """share of the topic's documents that are labelled; all others count as fine"""
    seed: int = 0
    """fixes everything random"""
    preset: EraPreset = "stories"
    """the other options' defaults: "stories", a minute on one core; "tinystories", gradient routing's section C;
    "virology", its section E"""
    shard: bool = False
    """under torchrun: spread gradients and the optimizer's state over the devices, and the model while it is trained"""
    out: Path | None = None
    """run directory (default: runs/unlearn-METHOD-CONFIGHASH-sSEED)"""
    force: bool = False
    """start over; the old directory is kept under another name"""

    def config(self) -> dict[str, Any]:
        """What, with the seed, the run depends on, as JSON; a folder as model is for the caller to replace."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_IDENTITY}


@dataclass(frozen=True)
class EraOptions(TextOptions):
    """Compare ways to take a topic out of a language model, over shares of labels and seeds; goes on where it
    stopped."""

    methods: tuple[EraMethod, ...] = (
        "base", "control", "filtering", "rmu", "demix", "era", "era-chosen", "era+rmu",
    )  # fmt: skip
    """compared at every share of labels; further ones are era-parameter, era-forward and control-chosen. base and
    control do not depend on labels, and era+rmu is of the largest share alone"""
    labelled: tuple[float, ...] = (0.25, 0.5, 1.0)
    """shares of the topic's documents that are labelled"""
    seeds: int = 3
    """models of each, with seeds 0, 1, …"""
    preset: EraPreset = "stories"
    """the other options' defaults: "stories", minutes on a CPU; "tinystories", gradient routing's section C;
    "virology", its section E"""
    out: Path = RUNS / "era"
    """where runs, tables and figures go"""
