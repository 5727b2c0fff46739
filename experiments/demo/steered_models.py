"""Models with a steering scalar, as a study of ``routed-rl steering-scalar`` leaves them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from routed_rl.errors import user_input
from routed_rl.experiments.demo.text_models import Steering, texts_of, tokenizer_of
from routed_rl.lm import open_corpus
from routed_rl.lm.corpora import Kind
from routed_rl.lm.era_study.pipeline import MODEL
from routed_rl.runs import read_json
from routed_rl.runs.grid import is_finished
from routed_rl.runs.rundir import RESULT
from routed_rl.runs.studies import STUDY

SAMPLES = 3
"""Number of sample documents of each kind."""
KINDS: dict[str, Kind] = {"with": "forget", "without": "retain"}
"""The kinds of documents, by whether they are called with or without the token."""


@dataclass(frozen=True)
class SteeredModel:
    """A model, and one of its dimensions that stands for a token.

    Attributes:
        title: the study, the token, the kind of model and the seed.
        folder: of the model.
        token: the text of the token.
        block, dimension: after which block, and which dimension of the residual stream.
        sign: 1 or -1: the direction in which the dimension stands for the token.
        strongest, usual: the largest number that the study added to the dimension, and that of its sample texts.
        seed: of the model.
    """

    title: str
    folder: Path
    token: str
    block: int
    dimension: int
    sign: int
    strongest: float
    usual: float
    seed: int

    def steering(self, strength: float) -> Steering:
        """Return what is added for a strength. A positive strength is towards the token."""
        return Steering(self.block, self.dimension, self.sign * strength)

    def samples(self) -> dict[str, str]:
        """Return sample texts of the study's held-out documents, by what they are called."""
        with user_input():
            corpus = open_corpus(self.folder.parents[2] / "corpus")
            tokenizer = tokenizer_of(self.folder)
            return {
                f"document {name} {self.token!r} {i}": text
                for name, kind in KINDS.items()
                for i, text in enumerate(texts_of(corpus, corpus.documents("validation", kind)[:SAMPLES], tokenizer), 1)
            }


def find_steered(directory: Path) -> list[SteeredModel]:
    """Return the steered models in the directory of a study, routed ones first; none for other directories.

    Raises:
        UserError: if a file of the study cannot be read.
    """
    with user_input():
        study = read_json(directory / STUDY) if (directory / STUDY).exists() else {}
        if not isinstance(study, dict) or "steered_block" not in study:
            return []
        found, usual = [], study["sample_strength"]
        strengths = max(map(abs, (*study["strengths"], usual))) or 1.0, usual
        for run in sorted(directory.glob("runs/*-s*/")):
            if not is_finished(run):
                continue
            result = read_json(run / RESULT)
            kind = "routed" if result["routed"] else "unrouted"
            for dimension, axis in enumerate(result["axes"]):
                title = f"{directory.name}: {axis['token']!r}, {kind}, seed {result['seed']}"
                place = study["steered_block"], dimension, axis["sign"]
                model = run / MODEL, axis["token"], *place, *strengths, result["seed"]
                found.append(SteeredModel(title, *model))
        return found
