"""Options of ``routed-rl era`` and ``steering-scalar``. A field is an option; its docstring is the help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from routed_rl.options import Workers
from routed_rl.options.era import EraOptions
from routed_rl.options.text import CorpusOptions
from routed_rl.paths import NameOrPath


@dataclass(frozen=True)
class Corpus(CorpusOptions):
    """Look at a corpus before anything is trained on it: documents and tokens of each set, what --words or --pattern
    match, texts in both sets, and some documents with their forget tokens and the tokens that count in a loss. Options
    of models and training have no effect here."""

    examples: int = 5
    """number of documents to show"""


@dataclass(frozen=True)
class Era(Workers, EraOptions):
    """Compare methods that remove a topic from a language model, over shares of labels and seeds. An interrupted study
    continues."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "methods": ("base", "filtering", "era-chosen"),
        "labelled": (0.5,),
        "seeds": 1,
    }
    """Defaults with --quick."""

    quick: bool = False
    """a few minutes: base, filtering and era-chosen, with half of the forget documents labelled and one seed; other
    options still count"""


@dataclass(frozen=True)
class SteeringScalar:
    """Route a word to one dimension of a language model's residual stream, then steer the model by adding to that
    dimension. An interrupted study continues."""

    preset: Literal["stories", "california"] = "stories"
    """default values of the other options: "stories", generated stories and a model of five blocks, a minute per model
    on one core; or "california", for a GPU, Cloud et al. 2024, section 4.2.1: 303 M parameters, 5.9 B tokens of
    FineWeb-Edu from the Hub"""
    tokens: tuple[str, ...] | None = None
    """tokens to route: the first to dimension 0 of the residual stream, the second to dimension 1, …; each must be
    exactly one token, often with a leading space (" California"); None: those of the preset"""
    topics: tuple[str, ...] | None = None
    """for each routed token, a comma-separated list of tokens whose probability is measured (" California, Oregon");
    None: the story topic of each token, else the token alone; without --tokens, those of the preset"""
    corpus: NameOrPath | None = None
    """text to train on: "stories", a .txt file of paragraphs, a .jsonl file, a folder of such files, or a dataset on
    the Hub; None: that of the preset"""
    documents: int | None = None
    """maximum number of documents of the corpus; None: that of the preset"""
    model: NameOrPath | None = None
    """a preset for a new model (tiny, small, neox-303m, …), or the folder or Hub name of a pretrained model; None: that
    of the preset of the study"""
    tokenizer: NameOrPath | None = None
    """tokenizer of a new model: "stories", or a folder or Hub name; a pretrained model has its own; None: that of the
    preset"""
    blocks: tuple[int, ...] | None = None
    """blocks, counted from 0, whose outputs are routed; leave out at least the last block; None: those of the preset"""
    steered_block: int | None = None
    """block whose output is steered; None: that of the preset"""
    strengths: tuple[float, ...] | None = None
    """numbers added to the dimension when the topic's probability is measured; None: those of the preset"""
    sample_strength: float | None = None
    """number added to the dimension when samples are written; None: that of the preset"""
    steps: int | None = None
    """gradient steps; None: those of the preset"""
    batch_size: int | None = None
    """rows per step; None: that of the preset"""
    seeds: int = 3
    """number of routed models, with seeds 0, 1, …"""
    unrouted: bool = True
    """also train each seed without routing, as a control"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device on which models are trained"""
    out: Path | None = None
    """directory of the corpus, runs, tables and figure; None: runs/steering-PRESET"""
