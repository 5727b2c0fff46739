"""A model of an arena, saved for others: with a model card, and its scores under the names of open-unlearning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError
from safetensors.numpy import load_file

from routed_rl.paths import expanded
from routed_rl.runs import write_bytes
from routed_rl.runs.files import StrPath
from routed_rl.runs.tables import markdown
from routed_rl.unlearning.arena.entries import NONE, NUMBERS, SEED, Arena, Entry
from routed_rl.unlearning.arena.making import Maker
from routed_rl.unlearning.benchmarks.benchmark import FORGET, HOLDOUT
from routed_rl.unlearning.scores import area_under_curve

CARD, EVALUATION, OVERVIEW = "README.md", "TOFU_EVAL.json", "TOFU_SUMMARY.json"
Fields = Mapping[str, Callable[[np.ndarray], np.ndarray]]
"""What a metric says of each example, by the name of the field, made from our numbers."""


def _same(numbers: np.ndarray) -> np.ndarray:
    return numbers


SCORE: Fields = {"score": _same}
PROBABILITY: Fields = {"prob": _same, "avg_loss": lambda numbers: -np.log(numbers)}
RECALL, F1 = {"rougeL_recall": _same}, {"rougeL_f1": _same}
RATIO: Fields = {"score": np.exp}
NOTHING: Fields = {}
METRICS: Mapping[str, tuple[str, Fields]] = {
    "extraction-strength": ("extraction_strength", SCORE),
    "exact-memorisation": ("exact_memorization", SCORE),
    "probability": ("forget_Q_A_Prob", PROBABILITY),
    "paraphrased-probability": ("forget_Q_A_PARA_Prob", PROBABILITY),
    "rouge-recall": ("forget_Q_A_ROUGE", RECALL),
    "truth-ratio": ("forget_truth_ratio", RATIO),
    "forget-quality": ("forget_quality", NOTHING),
    "model-utility": ("model_utility", NOTHING),
    "retained-probability": ("retain_Q_A_Prob", PROBABILITY),
    "retained-rouge-recall": ("retain_Q_A_ROUGE", RECALL),
    "retained-truth-ratio": ("retain_Truth_Ratio", RATIO),
    "verbatim-memorisation": ("forget_verbmem_ROUGE", F1),
    "knowledge-memorisation": ("forget_knowmem_ROUGE", F1),
    "retained-knowledge-memorisation": ("retain_knowmem_ROUGE", F1),
}
"""The metrics of open-unlearning (Dorna et al. 2025) that our scores are, with the fields that these metrics read."""
ATTACKS: Mapping[str, str] = {
    "membership-loss": "mia_loss",
    "membership-zlib": "mia_zlib",
    "membership-reference": "mia_reference",
    "privacy-leakage": "mia_min_k",
}
"""Their membership attacks. Their Min-K% has k = 0.4, as our privacy leakage; our other Min-K% scores have 0.2."""
LEAKAGE, PERCENT = "privleak", 100


def export(arena: Arena, root: Path, results: pd.DataFrame, entry: Entry, folder: StrPath) -> Path:
    """Save a model of an arena in a folder, with its card and its scores, and return the folder.

    Scores and attacks that are not there, for example because they failed, are left out.

    The folder has what transformers loads; ``README.md``, the model card; ``TOFU_EVAL.json``, each score with the
    numbers of its examples; and ``TOFU_SUMMARY.json``, the scores alone. The last two have the names, fields and scales
    of open-unlearning where it has the same metric. Other scores keep their own names and numbers.

    ``TOFU_EVAL.json`` of the retrained model can be open-unlearning's ``retain_logs_path``, if the scores
    ``truth-ratio`` and ``privacy-leakage`` were measured.

    Args:
        root: the directory of all stages.
        results: the rows of ``results.csv``.

    Raises:
        ValueError: if the model itself is not there.
    """
    if entry.stage.result(root) is None:
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


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _by_index(columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """Return the numbers of each example by name. Columns may differ in length."""
    rows = max(map(len, columns.values()))
    return {str(i): {name: _finite(of[i]) for name, of in columns.items() if i < len(of)} for i in range(rows)}


def _scores(root: Path, entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, stage in entry.scores.items():
        if (result := stage.result(root)) is None:
            continue
        value, numbers = result["value"], load_file(stage.path(root) / NUMBERS)
        if name in ATTACKS:
            found[ATTACKS[name]] = _attack(numbers)
        if name == "privacy-leakage":
            found[LEAKAGE] = {"agg_value": None if value is None else PERCENT * value}
        elif name in METRICS:
            theirs, fields = METRICS[name]
            with np.errstate(divide="ignore"):
                columns = {field: made(of) for field, made in fields.items() for of in numbers.values()}
            found[theirs] = {"agg_value": value, **({"value_by_index": _by_index(columns)} if columns else {})}
        elif name not in ATTACKS:
            found[name] = {"agg_value": value, "value_by_index": _by_index(numbers)}
    return found


def _attack(numbers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return a membership attack as theirs: each text has a loss, so that larger numbers look less learned."""
    area = _finite(area_under_curve(numbers[FORGET], numbers[HOLDOUT]))
    sets = {
        name: {
            "agg_value": _finite(float(-numbers[name].mean())),
            "value_by_index": _by_index({"score": -numbers[name]}),
        }
        for name in (FORGET, HOLDOUT)
    }
    return {**sets, "auc": area, "agg_value": area}


def _card(arena: Arena, results: pd.DataFrame, entry: Entry) -> ModelCard:
    options = arena.options
    rows = results[(results.name == entry.name) & (results.seed == entry.seed)]
    before, attacked = rows[rows.attack == "none"], rows[rows.attack != "none"]
    cost, compute = (next(iter(before[column]), np.nan) for column in ("cost", "compute"))
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
        f"{_number(cost) or 'unknown'} rows of training after the full model; that is "
        f"{_number(compute) or 'an unknown share'} of retraining.",
    ]  # fmt: skip
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _settings(arena: Arena, entry: Entry) -> list[str]:
    options = arena.options
    settings: dict[str, Any] = {}
    if entry.before == "era":
        settings |= {f"routing.{name}": value for name, value in asdict(options.routing).items()}
    if entry.method in arena.methods:
        made, recipe = arena.method(arena.methods[entry.method].reference)
        settings |= {"steps": recipe.steps, "learning_rate": recipe.learning_rate, **vars(made)}
    if entry.then == "undo":
        settings |= {"undo.alpha": entry.alpha, "undo.beta": options.beta}
    if entry.then != NONE:
        settings |= {f"student.{name}": value for name, value in asdict(options.student).items()}
    if not settings:
        return []
    settings |= {"batch_size": options.batch_size, "rank": options.rank or "all weights"}
    return ["## Method", markdown(["setting", "value"], [[name, str(value)] for name, value in settings.items()])]


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.3g}"


def _license(parent: str | None) -> str | None:
    """The licence in the model card of a folder, or of a model on the Hub; None: it is not known."""
    if parent is None:
        return None
    try:
        card = ModelCard.load(Path(parent) / CARD if Path(parent).is_dir() else parent, ignore_metadata_errors=True)
    except (OSError, ValueError, EntryNotFoundError):  # there is no card, or the Hub cannot be reached
        return None
    return card.data.license  # type: ignore[no-any-return]
