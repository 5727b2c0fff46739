"""Results of a study of Expand-Route-Ablate: tables, a summary, figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from routed_rl.lm.era_study.charts import MEASURES, measure_chart, relearning_chart
from routed_rl.lm.era_study.figures import ORDER, UNLABELLED, draw_panels, draw_relearning, draw_tokens
from routed_rl.options.era import EraOptions
from routed_rl.runs import read_json, read_metrics
from routed_rl.runs.charts import Chart
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import aggregate, escaped, least_to_most, markdown, shown_mean, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = ("method", "labelled", "seed")
HEADLINE = 16
"""Number of documents of the attack that measures robust unlearning. Without this attack, the strongest one counts."""
UNCHANGED, HARMED = 0.01, 0.3
"""Nats: a smaller change of the forget loss means that nothing was removed, a larger rise of the retain loss damage."""
MEANINGS = {
    "method": "method, or variant of one",
    "labelled": "share of the training documents on the topic that are labelled",
    "seed": "seed of model, labels and order of documents",
    "before": "forget loss before unlearning, in nats per token; all losses are of held-out documents",
    "forget": "forget loss of the finished model",
    "retain": "retain loss of the finished model",
    "unlearning": "`forget` - `before`: what unlearning has achieved",
    r"relearned_(\d+)": "lowest forget loss during a relearning attack with {} documents; mean over attacks",
    "robust": f"lowest forget loss in the attack with {HEADLINE} documents, or else the strongest one, - `before`",
    "retain_cost": "`retain` above that of `base` with the same seed",
    "forget_(routed|rest)": "forget loss on routed words (routed) or on all other words (rest): here {}",
    "(pretrained|trained|ablated|repaired|finished)_(forget|retain)": "{1} loss after the stage {0}",
    "labelled_documents": "number of labelled training documents",
    "routed_tokens": "number of tokens of the vocabulary that are mostly routed to the new units",
    "parameters": "number of the model's parameters",
}
"""What each column of ``results.csv`` means."""
Key = tuple[str, float, int]
"""Method, share of labels and seed of a model."""
Result = Mapping[str, Any]


def find(options: EraOptions, failed: Mapping[Path, str]) -> Findings | None:
    """Return the results of all finished runs, those of earlier starts included; None if none can be compared."""
    failed = dict(failed)
    results: dict[Key, Result] = {}
    timings = []
    for path in sorted((options.out / "runs").glob("*/*/evaluation.json")):
        run = path.parent
        named = re.fullmatch(r"([\d.e-]+)-s(\d+)", run.name)
        if run.parent.name not in ORDER or named is None:
            continue  # not a run of a study, perhaps one that was set aside
        try:
            key = (run.parent.name, float(named[1]), int(named[2]))
            result = _whole(read_json(path))
            seconds = sum(float(row["seconds"]) for row in read_metrics(run / "timings.csv"))
        except (ValueError, LookupError, TypeError, OSError) as error:
            failed[run] = f"its files are damaged: {error}"
            continue
        results[key] = result
        timings.append({**dict(zip(KEYS, key, strict=True)), "training_seconds": seconds})
    rows = [row for key in results if (row := _row(key, results)) is not None]
    if not rows:  # nothing is finished, or the models to compare with have failed
        return None
    frame = tidy(rows, KEYS)
    focus = min(options.labelled, key=lambda share: abs(share - 0.5))
    text = summary(frame, focus) + _remarks(results) + _samples(results, focus)
    text += "".join(f"\n{out.parent.name}/{out.name} failed: {escaped(reason)}\n" for out, reason in failed.items())
    curves = {key: result["relearning"] for key, result in results.items() if key[0] in UNLABELLED or key[1] == focus}
    drawn: dict[str, Callable[[], Figure]] = {"unlearning": lambda: draw_panels(frame)}
    charts: dict[str, Callable[[], Chart]] = {name: partial(measure_chart, frame, name) for name in MEASURES}
    if any(curves.values()):
        drawn["relearning"] = lambda: draw_relearning(curves, focus)
        charts["relearning"] = lambda: relearning_chart(curves)
    drawn["tokens"] = lambda: draw_tokens(frame)
    return Findings(frame, tidy(timings, KEYS), KEYS, text, drawn, MEANINGS, failed, charts)


def _whole(result: Any) -> Result:
    """Return a run's result; LookupError or TypeError if a reported value is missing."""
    for stage in ("trained", "finished"):
        for kind in ("forget", "retain", "forget_routed", "forget_rest"):
            result["losses"][stage][kind]
        result["samples"][stage][0]
    for name in ("relearning", "labelled_documents", "routed_tokens", "parameters"):
        result[name]
    return result  # type: ignore[no-any-return]


def _row(key: Key, results: Mapping[Key, Result]) -> dict[str, Any] | None:
    """A model's losses, compared with those before unlearning; None if the model to compare with is not finished.

    A model with new units or an expert for the topic is compared with itself before ablation. Other models are compared
    with base.
    """
    method, share, seed = key
    result = results[key]
    own = "ablated" in result["losses"]
    bases = [other for other in results if other[0] == "base" and other[2] == seed]
    origin = key if own else ("era", share, seed) if method == "era+rmu" else bases[0] if bases else None
    if origin is None or origin not in results:
        return None
    before, after = results[origin]["losses"]["trained"], result["losses"]["finished"]
    row = dict(zip(KEYS, key, strict=True))
    row |= {"before": before["forget"], "forget": after["forget"], "unlearning": after["forget"] - before["forget"]}
    lowest = {}
    for documents, curves in result["relearning"].items():
        lowest[documents] = float(np.mean([min(loss for _, loss in curve) for curve in curves]))
        row[f"relearned_{documents}"] = lowest[documents]
    row |= {
        "robust": row.get(f"relearned_{HEADLINE}", min(lowest.values())) - before["forget"],
        "retain": after["retain"],
    }
    if bases:
        row["retain_cost"] = after["retain"] - results[bases[0]]["losses"]["finished"]["retain"]
    row |= {name: np.nan if after[name] is None else after[name] for name in ("forget_routed", "forget_rest")}
    for stage, losses in result["losses"].items():
        row |= {f"{stage}_{kind}": losses[kind] for kind in ("forget", "retain")}
    return row | {name: result[name] for name in ("labelled_documents", "routed_tokens", "parameters")}


def summary(frame: pd.DataFrame, focus: float) -> str:
    """Return the study in Markdown.

    Args:
        frame: the rows of ``results.csv``.
        focus: the share of labels whose samples are shown.
    """
    seeds = frame.groupby(["method", "labelled"]).seed.nunique()
    parts = ["# Unlearning a topic of a language model"]
    parts.append(
        "Nats per token on held-out documents: mean ± half a 95 % interval over seeds "
        f"({least_to_most(seeds)} per row). *Unlearning*: rise of the forget loss. *Robust*: rise that is left "
        f"at the best step of a relearning attack with {HEADLINE} documents. *Retain*: retain loss. *Retain cost*: "
        "retain loss above that of base."
    )
    measures = [name for name in ("unlearning", "robust", "retain", "retain_cost") if name in frame]
    cells = {name: _cells(frame, name) for name in measures}
    keys = sorted(seeds.index, key=lambda key: (ORDER.index(key[0]), key[1]))
    rows = [[method, f"{share:.0%}", *(cells[name][method, share] for name in measures)] for method, share in keys]
    parts.append(markdown(["method", "labelled", *(name.replace("_", " ") for name in measures)], rows))
    tokens = frame[frame.labelled == focus]
    if len(tokens):
        cells = {name: _cells(tokens, name) for name in ("forget_routed", "forget_rest")}
        methods = sorted(set(tokens.method), key=ORDER.index)
        parts.append(f"## Forget loss with {focus:.0%} labelled, in nats per token")
        rows = [[method, *(found[method, focus] for found in cells.values())] for method in methods]
        parts.append(markdown(["method", "routed words", "other words"], rows))
    return "\n\n".join(parts) + "\n"


def remarks(losses: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return sentences about a model whose losses say that something is wrong.

    Args:
        losses: by stage ("pretrained", "trained", "ablated", …), then by "forget" and "retain", in nats per token.
    """
    found = []
    trained, finished = losses["trained"], losses["finished"]
    if "ablated" in losses and (change := abs(losses["ablated"]["forget"] - trained["forget"])) < UNCHANGED:
        found.append(
            f"Removing the new units changed the forget loss by only {change:.4f} nats: they have learned nothing "
            "about the topic. If the model knew the topic before, the original units know it still; use routed-rl "
            "undo, or train longer or with a larger learning rate."
        )
    before = losses.get("pretrained")
    if before is not None and finished["retain"] > before["retain"] + max(HARMED, 0.2 * before["retain"]):
        found.append(
            f"The retain loss rose from {before['retain']:.3f} (pretrained model) to {finished['retain']:.3f} nats: "
            "the model is damaged, so its forget loss says little. Lower the learning rate."
        )
    return found


def _remarks(results: Mapping[Key, Result]) -> str:
    """The remarks on all models, and what a pretrained model knew before."""
    parts = []
    # RMU starts from the model of another method, which is not the pretrained one.
    started = [result["losses"] for (method, *_), result in results.items() if "rmu" not in method]
    for before in [losses["pretrained"] for losses in started if "pretrained" in losses][:1]:
        parts.append(
            f"Before training, the pretrained model has a forget loss of {before['forget']:.3f} and a retain loss of "
            f"{before['retain']:.3f}."
        )
    # A control's new units are not routed, so that removing them is to change little.
    told = {key: result for key, result in results.items() if key[0] != "control"}
    for (method, share, seed), result in told.items():
        parts += [f"**{method}**, {share:.0%} labelled, seed {seed}: {text}" for text in remarks(result["losses"])]
    return "".join(f"\n{part}\n" for part in parts)


def _cells(frame: pd.DataFrame, measure: str) -> dict[tuple[str, float], str]:
    found = aggregate(frame, measure, KEYS[:2]).to_dict("records")
    return {(row["method"], row["labelled"]): shown_mean(row) for row in found}


def _samples(results: Mapping[Key, Result], focus: float) -> str:
    """Samples of some models, which continue the beginning of a forget document, after training and at the end."""
    parts = ["\n## Samples: beginnings of held-out forget documents, continued"]
    for key in sorted(results, key=lambda key: (ORDER.index(key[0]), key[1:])):
        method, share, seed = key
        if seed == 0 and (share == focus or method in UNLABELLED):
            samples = results[key]["samples"]
            parts.append(f"**{method}**, after training: {escaped(samples['trained'][0])}")
            if "ablated" in results[key]["losses"] or "rmu" in method:
                parts.append(f"**{method}**, finished: {escaped(samples['finished'][0])}")
    return "\n\n".join(parts) + "\n"
