"""Pairs of models before and after unlearning, as studies of ``routed-rl era`` and ``undo`` leave them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from routed_rl.errors import UserError, user_input
from routed_rl.experiments.demo.stages import is_undo
from routed_rl.experiments.demo.text_models import model_of, texts_of, tokenizer_of
from routed_rl.experiments.demo.undo_results import read_undo
from routed_rl.lm import Corpus, FineTuning, evaluate, fine_tune, open_corpus
from routed_rl.lm.corpora import Split
from routed_rl.lm.era_study.division import Division
from routed_rl.lm.era_study.pipeline import MODEL
from routed_rl.lm.inputs import Text
from routed_rl.options import RUNS
from routed_rl.options.conform import conform
from routed_rl.options.era import Unlearn
from routed_rl.runs import read_json, read_run
from routed_rl.runs.grid import is_finished
from routed_rl.runs.rundir import RESULT
from routed_rl.runs.studies import STUDY
from routed_rl.unlearning.attacked import load_attacked
from routed_rl.unlearning.undo_study.measurements import ATTACKED

BASE = "base"
MOMENTS = {
    "pretrained": "pretrained model",
    "trained": "after training",
    "ablated": "new units removed",
    "repaired": "after the first repair",
    "finished": "finished model",
}
"""What the study of ERA calls the moments at which it measures a model, and what the page calls them."""
SAMPLES = 3
"""Number of sample documents of each kind."""
MOST_STEPS = 20
"""Most steps of an attack that is run in the page."""
UNLEARNED = ("suppressed", "distilled", "undo")
"""Kinds of models of an UNDO study from which the forget set was unlearned."""


@dataclass(frozen=True)
class Comparison(ABC):
    """A model before and after unlearning.

    Attributes:
        title: the study, the method and the seed.
        before, after: the folders of the two models.
        before_name, after_name: what the two models are called.
    """

    title: str
    before: Path
    after: Path
    before_name: str
    after_name: str

    @property
    def is_run_here(self) -> bool:
        """Whether the attack is run in the page, because the study did not keep the attacked model."""
        return False

    @property
    @abstractmethod
    def attack_steps(self) -> Sequence[int]:
        """Attack steps that can be chosen. Empty: there is no attack."""

    @abstractmethod
    def attacked(self, steps: int, on_step: Callable[[], None] = lambda: None) -> nn.Module:
        """Return the model after so many attack steps.

        Raises:
            UserError: if a file of the study cannot be read.
        """

    @abstractmethod
    def describe_attack(self) -> str:
        """Return one sentence about the attack, or why there is none."""

    @abstractmethod
    def documents(self, kind: Any) -> list[str]:
        """Return sample texts of the forget set or the retain set; empty where the corpus is not found."""

    def moments(self) -> pd.DataFrame:
        """Return what the study measured while it made the model: a row per moment. Empty: it kept nothing of this."""
        return pd.DataFrame()

    def samples(self) -> dict[str, str]:
        """Return sample texts by what they are called."""
        return {
            f"{kind} document {i}": text
            for kind in ("forget", "retain")
            for i, text in enumerate(self.documents(kind)[:SAMPLES], 1)
        }


@dataclass(frozen=True)
class EraComparison(Comparison):
    """The base model of an ERA study, and the finished model of a method with the same seed."""

    @property
    def is_run_here(self) -> bool:
        return True

    @property
    def attack_steps(self) -> Sequence[int]:
        return range(1, MOST_STEPS + 1) if self._division is not None else ()

    def attacked(self, steps: int, on_step: Callable[[], None] = lambda: None) -> nn.Module:
        division = self._division
        if division is None:
            raise UserError(self.describe_attack())
        attack = division.command.attack
        settings = FineTuning(steps, attack.learning_rate, attack.every)

        def measure(tuned: nn.Module) -> dict[str, float]:
            return {"forget": evaluate(tuned, division.test["forget"]).mean()}

        documents = division.attackers(max(attack.documents))
        with torch.random.fork_rng(devices=[]):  # for models with dropout
            torch.manual_seed(division.command.seed)
            return fine_tune(model_of(self.after), documents, settings, measure, on_step)[0].eval()

    def describe_attack(self) -> str:
        if self._division is None:
            return (
                "There is no attack here, because the study's corpus is not found. It is looked for in the folders "
                "corpora and runs/corpora beside the study, and in runs/corpora where the demo was started."
            )
        attack = self._division.command.attack
        return (
            "The study does not keep attacked models, so the attack is run here: fine-tuning on "
            f"{max(attack.documents)} held-out forget documents, learning rate {attack.learning_rate:g}. The model at "
            "the step with the lowest forget loss is shown."
        )

    def moments(self) -> pd.DataFrame:
        with user_input():
            result = read_json(self.after.parent / RESULT)
        rows = [
            {
                "moment": text,
                "forget loss": f"{result['losses'][name]['forget']:.2f}",
                "retain loss": f"{result['losses'][name]['retain']:.2f}",
                "a sample": next(iter(result["samples"].get(name, [])), "–"),
            }
            for name, text in MOMENTS.items()
            if name in result["losses"]
        ]
        return pd.DataFrame(rows)

    def documents(self, kind: Any) -> list[str]:
        if self._division is None:
            return []
        test = self._division.test[kind]
        return texts_of(test.corpus, test.documents[:SAMPLES], tokenizer_of(self.after))

    @cached_property
    def _division(self) -> Division | None:
        """The study's documents; None if its corpus is not found."""
        with user_input():
            run = self.after.parent
            digest = read_json(run.parents[2] / STUDY)["text"]
            corpus = _corpus(run.parents[2], digest)
            if corpus is None:
                return None
            record = read_run(run)
            return Division(_options(record.config, record.seed), Text(corpus, tokenizer_of(self.after), digest))


@dataclass(frozen=True)
class UndoComparison(Comparison):
    """The reference model of an UNDO study, and a suppressed model or a student with the same seed.

    Attributes:
        attack: the folder with the attacked models of one learning rate; None if they are not kept.
        learning_rate: the learning rate that is best for the attacker within all steps.
        digest: of the corpus.
    """

    attack: Path | None = None
    learning_rate: Any = None
    digest: str = ""

    @property
    def attack_steps(self) -> Sequence[int]:
        return [] if self.attack is None else sorted(int(path.name) for path in self.attack.iterdir())

    def attacked(self, steps: int, on_step: Callable[[], None] = lambda: None) -> nn.Module:
        if self.attack is None:
            raise UserError(self.describe_attack())
        with user_input():
            return load_attacked(model_of(self.after), self.attack / str(steps)).eval()

    def describe_attack(self) -> str:
        if self.attack is None:
            return (
                "The study has kept no attacked models of this model. They are kept up to the size that "
                "--relearn.keep-gb of routed-rl undo sets."
            )
        return (
            "Attacked models are those of the study: fine-tuning on the forget set at the attacker's best learning "
            f"rate, {self.learning_rate}."
        )

    def documents(self, kind: Any) -> list[str]:
        corpus = _corpus(self.after.parents[2], self.digest)
        if corpus is None:
            return []
        split: Split = "validation" if corpus.validation.any() else "train"
        found = corpus.documents(split, kind)
        every = max(len(found) // SAMPLES, 1)
        return texts_of(corpus, found[every // 2 :: every], tokenizer_of(self.after))


def find_comparisons(directory: Path) -> list[Comparison]:
    """Return the pairs of models in the directory of a study; none for other directories.

    Raises:
        UserError: if a file of the study cannot be read.
    """
    with user_input():
        return _of_undo(directory) if is_undo(directory) else _of_era(directory)


def _of_era(directory: Path) -> list[Comparison]:
    found: list[Comparison] = []
    for path in sorted(directory.glob(f"runs/*/*-s*/{MODEL}")):
        run, method = path.parent, path.parents[1].name
        share, _, seed = run.name.partition("-s")
        bases = [base for base in sorted(directory.glob(f"runs/{BASE}/*-s{seed}")) if is_finished(base)]
        if method == BASE or re.fullmatch(r"[\d.e-]+-s\d+", run.name) is None or not bases or not is_finished(run):
            continue
        title = f"{directory.name}: {method}, {100 * float(share):g} % labelled, seed {seed}"
        found.append(EraComparison(title, bases[-1] / MODEL, path, "base model", f"after {method}"))
    return found


def _of_undo(directory: Path) -> list[Comparison]:
    results = read_undo(directory)
    named = {run.path.name: run for run in results.runs.values()}
    rows = results.rows.to_dict("records")
    references = {row["seed"]: row["stage"] for row in rows if row["model"] == "reference"}
    found: list[Comparison] = []
    for row in rows:
        if row["model"] not in UNLEARNED or row["seed"] not in references or row["stage"] not in named:
            continue
        before, after = (named[stage] for stage in (references[row["seed"]], row["stage"]))
        attack = None if pd.isna(row["attack"]) else after.path.with_name(str(row["attack"])) / ATTACKED
        kept = sorted(attack.iterdir()) if attack is not None and attack.is_dir() else []
        rate = row["worst_learning_rate"]
        best = next((folder for folder in kept if _is_rate(folder.name, rate)), None)
        title = f"{directory.name}: {row['name']}, seed {row['seed']}"
        models = before.path / MODEL, after.path / MODEL, "reference model", row["name"]
        found.append(UndoComparison(title, *models, best, rate, before.options["text"]))
    return found


def _is_rate(setting: str, rate: Any) -> bool:
    try:
        return float(setting) == float(rate)
    except (ValueError, TypeError):
        return setting == rate


def _corpus(study: Path, digest: str) -> Corpus | None:
    """Return the tokenised corpus of a study, from the folders in which studies look for it; None: it is not there."""
    corpora = RUNS / "corpora"
    folders = (study.parent / "corpora", study.parent / corpora, corpora)
    found = [path for folder in folders for path in sorted(folder.glob(f"*-{digest}"))]
    return open_corpus(found[0]) if found else None


def _options(config: Mapping[str, Any], seed: int) -> Unlearn:
    """Return the options of a run, given its configuration as JSON."""
    usual, given = Unlearn(), dict(config)
    for field in fields(Unlearn):
        part = getattr(usual, field.name)
        if is_dataclass(part) and field.name in given:
            kind: type = type(part)
            given[field.name] = kind(**conform(kind, given[field.name]))
    return Unlearn(**conform(Unlearn, given), seed=seed)
