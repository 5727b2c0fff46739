"""Options of ``routed-rl era`` and ``steering-scalar``: a field is an option, its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from routed_rl.options import Workers
from routed_rl.options.era import EraOptions


@dataclass(frozen=True)
class Era(Workers, EraOptions):
    """Compare ways to take a topic out of a language model, over shares of labels and seeds; goes on where it
    stopped."""

    quick: bool = False
    """base, filtering and era-chosen at half the labels, one seed: a few minutes"""


@dataclass(frozen=True)
class SteeringScalar:
    """Route a word to one number inside a language model, then turn that number: what the model comes to talk about;
    goes on where it stopped."""

    preset: Literal["stories", "california"] = "stories"
    """what the other options are unless given: "stories", generated ones and a model of five blocks, a minute of one
    core each; or "california", Cloud et al. 2024, section 4.2.1: 303 M parameters, 5.9 B tokens of FineWeb-Edu from the
    Hub, for a GPU"""
    tokens: tuple[str, ...] | None = None
    """what is routed: the first to dimension 0 of the residual stream, the second to 1, …; each one token exactly, so
    mind the space that words within a text begin with (" California")"""
    topics: tuple[str, ...] | None = None
    """for each token, a comma-separated list of tokens whose probability is measured (" California, Oregon"); if tokens
    are given and these are not: those of the story topic that it is of, else itself alone"""
    corpus: str | None = None
    """text to train on: "stories", a .txt file of paragraphs, a .jsonl file, a folder of such, or a dataset of the
    Hub"""
    documents: int | None = None
    """how many of its documents to take at most"""
    model: str | None = None
    """a new model of a preset (tiny, small, neox-303m, …), or the folder or Hub name of a pretrained one"""
    tokenizer: str | None = None
    """of a new model: "stories", or a folder or Hub name; a pretrained one has its own"""
    blocks: tuple[int, ...] | None = None
    """the blocks, from 0, behind which the tokens are routed; leave at least the last one out"""
    steered_block: int | None = None
    """the block behind which is steered"""
    strengths: tuple[float, ...] | None = None
    """what is added to the dimension where the topic's probability is measured"""
    sample_strength: float | None = None
    """what is added to it where samples are written"""
    steps: int | None = None
    """gradient steps"""
    batch_size: int | None = None
    """rows of tokens a step"""
    seeds: int = 3
    """models, with seeds 0, 1, …"""
    unrouted: bool = True
    """train each seed without routing as well, as a control"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where models are trained"""
    out: Path | None = None
    """where corpus, runs, tables and figure go; None: runs/steering-PRESET"""
