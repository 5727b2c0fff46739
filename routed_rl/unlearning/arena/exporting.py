"""A model of an arena, saved for others: with a model card, and its scores under the names of open-unlearning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData
from safetensors.numpy import load_file

from routed_rl.paths import expanded
from routed_rl.runs import write_bytes
from routed_rl.runs.files import StrPath
from routed_rl.runs.tables import markdown
from routed_rl.unlearning.arena.entries import NUMBERS, SEED, Arena, Entry
from routed_rl.unlearning.arena.making import Maker

CARD, EVALUATION, OVERVIEW = "README.md", "TOFU_EVAL.json", "TOFU_SUMMARY.json"
NAMES: Mapping[str, str] = {
    "extraction-strength": "extraction_strength",
    "exact-memorisation": "exact_memorization",
    "probability": "forget_Q_A_Prob",
    "paraphrased-probability": "forget_Q_A_PARA_Prob",
    "rouge-recall": "forget_Q_A_ROUGE",
    "truth-ratio": "forget_truth_ratio",
    "forget-quality": "forget_quality",
    "model-utility": "model_utility",
    "retained-probability": "retain_Q_A_Prob",
    "retained-rouge-recall": "retain_Q_A_ROUGE",
    "retained-truth-ratio": "retain_Truth_Ratio",
    "membership-loss": "mia_loss",
    "membership-zlib": "mia_zlib",
    "membership-min-k": "mia_min_k",
    "membership-min-k-plus-plus": "mia_min_k_plus_plus",
    "membership-reference": "mia_reference",
    "privacy-leakage": "privleak",
    "verbatim-memorisation": "forget_verbmem_ROUGE",
    "knowledge-memorisation": "forget_knowmem_ROUGE",
    "retained-knowledge-memorisation": "retain_knowmem_ROUGE",
}
"""What open-unlearning (Dorna et al. 2025) calls our scores. Others keep their names."""


def export(arena: Arena, root: Path, results: pd.DataFrame, entry: Entry, folder: StrPath) -> Path:
    """Save a finished model of an arena in a folder, with its card and its scores, and return the folder.

    The folder has what transformers loads; ``README.md``, the model card; ``TOFU_EVAL.json``, each score with the
    numbers of its examples; and ``TOFU_SUMMARY.json``, the scores alone. The last two are laid out and named as those
    of open-unlearning, so that scripts that read theirs read ours.

    Args:
        root: the directory of all stages.
        results: the rows of ``results.csv``.

    Raises:
        ValueError: if the model is not finished.
    """
    if any(stage.result(root) is None for stage in entry):
        raise ValueError(f"the model {entry.name!r} of seed {entry.seed} is not finished: run the study first")
    folder = expanded(folder)
    model, tokenizer = Maker(arena, root).load(entry.stage)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    scores = _scores(root, entry)
    write_bytes(folder / EVALUATION, _json(scores))
    write_bytes(folder / OVERVIEW, _json({name: score["agg_value"] for name, score in scores.items()}))
    write_bytes(folder / CARD, str(_card(arena, results, entry)).encode())
    return folder


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _scores(root: Path, entry: Entry) -> dict[str, Any]:
    found = {}
    for name, stage in entry.scores.items():
        numbers = load_file(stage.path(root) / NUMBERS)
        rows = max(map(len, numbers.values()))
        by_index = {str(i): {part: _finite(of[i]) for part, of in numbers.items() if i < len(of)} for i in range(rows)}
        result = stage.result(root) or {}
        found[NAMES.get(name, name)] = {"agg_value": result["value"], "value_by_index": by_index}
    return found


def _card(arena: Arena, results: pd.DataFrame, entry: Entry) -> ModelCard:
    options = arena.options
    rows = results.query("name == @entry.name and seed == @entry.seed")
    before, attacked = rows[rows.attack == "none"], rows[rows.attack != "none"]
    parent = None if options.model is None else options.model.replace(SEED, str(entry.seed))
    data = ModelCardData(
        library_name="transformers",
        license=_license(parent),
        base_model=None if parent is None or Path(parent).exists() else parent,
        tags=["unlearning", "routed-rl"],
        ignore_metadata_errors=True,
    )
    steps = {"full": "It knows the forget set.", "retrained": "It never learned the forget set."}
    made = steps.get(entry.name) or f"It was made to forget by `{entry.name}`."
    parts = [
        f"# {entry.name}",
        f"A model of an unlearning arena of routed_rl {version('routed-rl')}, on the benchmark `{options.benchmark}`"
        f"{f', split `{options.split}`' if options.split else ''}, seed {entry.seed}. {made}",
        *_settings(arena, entry),
        "## Scores",
        markdown(["score", "value", "low", "high"], [[row.score, *map(_number, (row.value, row.low, row.high))]
                 for row in before.itertuples()]),
        "Low and high end the 95 % interval over examples (bootstrap).",
        "## Attacks",
        markdown(["attack", "best attempt", f"{arena.benchmark.main} after it", "above the retrained model",
                  "gradient steps"],
                 [[row.attack, str(row.attempt), *map(_number, (row.value, row.excess, row.attack_cost))]
                  for row in attacked.itertuples()]),
        "Another attack, or a longer one, may bring back more.",
        "## Cost",
        f"{_number(before.cost.iloc[0]) or 'unknown'} rows of training after the full model; that is "
        f"{_number(before.compute.iloc[0]) or 'an unknown share'} of retraining.",
    ]  # fmt: skip
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _settings(arena: Arena, entry: Entry) -> list[str]:
    settings: dict[str, Any] = {}
    if entry.before == "era":
        settings |= {f"routing.{name}": value for name, value in asdict(arena.options.routing).items()}
    if entry.method in arena.methods:
        made, recipe = arena.method(arena.methods[entry.method].reference)
        settings |= {"steps": recipe.steps, "learning_rate": recipe.learning_rate, **vars(made)}
    if not settings:
        return []
    return ["## Method", markdown(["setting", "value"], [[name, str(value)] for name, value in settings.items()])]


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.3g}"


def _license(parent: str | None) -> str | None:
    """The licence in the model card of a folder; None: it is not known."""
    card = None if parent is None else Path(parent) / CARD
    if card is None or not card.is_file():
        return None
    return ModelCard.load(card, ignore_metadata_errors=True).data.license  # type: ignore[no-any-return]
