"""``routed-rl era``: ways to take a topic out of a language model, compared over shares of labels; resumable."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from routed_rl.experiments.common.directories import check_study, start_study
from routed_rl.experiments.common.errors import UserError, at_least, user_input
from routed_rl.experiments.common.process import check_device, one_thread
from routed_rl.experiments.common.tables import aggregate, markdown, shown_mean, write_table
from routed_rl.experiments.common.text.corpus import Text, open_text, whole_paths
from routed_rl.experiments.common.workers import PYTHON, Kind, is_finished, open_backend, options, run_all
from routed_rl.experiments.language import era_figures
from routed_rl.experiments.language.checks import check_options
from routed_rl.experiments.language.methods import METHODS
from routed_rl.experiments.language.options import PRESETS, Era, TextOptions, Unlearn
from routed_rl.experiments.language.unlearn import MODEL, Pipeline, run_config
from routed_rl.runs import read_json, read_metrics, write_bytes

RESULTS, TIMINGS, SUMMARY = "results.csv", "timings.csv", "summary.md"
KEYS = ("method", "labelled", "seed")
AFTER = {"rmu": "base", "era+rmu": "era"}
"""Methods that go on from another's model."""
VARIANTS: Mapping[str, dict[str, Any]] = {
    "era-parameter": {"method": "era", "mode": "parameter"},
    "era-forward": {"method": "era", "mode": "forward", "alpha": 0.0},
    "era-chosen": {"method": "era", "mode": "parameter", "alpha": -0.2},
    "control-chosen": {"method": "control"},
}
"""Forms of Expand, Route, Ablate, by what distinguishes them from the paper's."""
CHOSEN = 4000
"""Documents that those called so choose for repair, unless told how many."""
HEADLINE = 16
"""Documents of the attack that robust unlearning is measured by, if there is one of so many; else the hardest."""
QUICK = {"methods": ("base", "filtering", "era-chosen"), "labelled": (0.5,), "seeds": 1}
Key = tuple[str, float, int]
"""Method, share of labels and seed of a model."""
Result = Mapping[str, Any]


def main(command: Era) -> None:
    one_thread()
    if command.quick:
        command = replace(command, **QUICK)
    command = replace(whole_paths(command), out=Path(os.path.abspath(command.out)))
    _check(command)
    with user_input():
        check_options(command)
        check_device(command.device)
        text = open_text(command)
        identity = {**_shared(command), "text": text.digest}
        check_study(command.out, identity)
        grid = _grid(command)
        needed = not all(is_finished(run.out) for run in grid if run.out is not None)
        if needed:
            _check_runs(grid, command.model, text)
    with open_backend(
        command.backend, command.ray_address, command.workers, command.out, needed, command.device
    ) as backend:
        start_study(command.out, identity)
        failed = run_all(grid, KIND, command.workers, backend)
    _report(command, failed)
    if failed:
        for out, reason in failed.items():
            print(f"routed-rl: failed: {out.parent.name}/{out.name}: {reason}", file=sys.stderr)
        raise UserError(f"{len(failed)} runs failed; the others are in {command.out / RESULTS}")


def _check_runs(grid: Sequence[Unlearn], model: str, text: Text) -> None:
    """ValueError or OSError if one of the runs could not be done; what goes on from another's model is looked at with
    what that begins with."""
    made = set()
    for run in grid:
        pipeline = Pipeline(replace(run, model=model), text)
        kind = (run.method, run.mode, run.repair)
        if kind not in made:
            made.add(kind)
            pipeline.check()


def _command(batch: Sequence[Unlearn]) -> list[str]:
    (run,) = batch
    usual = Unlearn(preset=run.preset, **PRESETS[run.preset])
    return [*PYTHON, "routed_rl.experiments.cli", "unlearn", "--preset", run.preset, *options(run, usual)]


def _total(run: Unlearn) -> int:
    return max(run.steps, 1)


def _after(run: Unlearn) -> list[Path]:
    return [Path(run.model).parent] if _name(run) in AFTER else []


KIND = Kind(config=run_config, command=_command, total=_total, counter="step", after=_after)


def _check(command: Era) -> None:
    at_least(1, seeds=command.seeds, workers=command.workers)
    for name, given in (("methods", command.methods), ("labelled", command.labelled)):
        if not given or len(set(given)) < len(given):
            raise UserError(f"--{name} must be at least one, each once, got {' '.join(map(str, given)) or 'none'}")
    if bad := [share for share in command.labelled if not 0 <= share <= 1]:
        raise UserError(f"--labelled must lie within 0 … 1, got {bad[0]}")
    for name in ("filtering", "rmu"):
        if name in command.methods and "base" not in command.methods:
            raise UserError(f"--methods {name} is compared with base: add base")
    for name, parent in AFTER.items():
        if name in command.methods and parent not in command.methods:
            raise UserError(f"--methods {name} goes on from {parent}'s models: add {parent}")
        if name in command.methods and not max(command.labelled):
            raise UserError(f"--methods {name} needs labelled documents, got --labelled {max(command.labelled)}")


def _shared(command: Era) -> dict[str, Any]:
    """What all runs of a study share; methods, shares of labels and seeds may be added to it."""
    run = Unlearn(**{field.name: getattr(command, field.name) for field in fields(TextOptions)})
    return {name: value for name, value in run_config(run).items() if name not in ("method", "labelled")}


def _grid(command: Era) -> list[Unlearn]:
    """Every method at every share of labels: ``runs/METHOD/SHARE-sSEED``."""
    common = {field.name: getattr(command, field.name) for field in fields(TextOptions)}
    most = max(command.labelled)
    grid = []
    for seed in range(command.seeds):
        for method in command.methods:
            for share in _shares(method, command.labelled):
                given = {"method": method, "seed": seed, "labelled": share, "preset": command.preset}
                given |= VARIANTS.get(method, {})
                if method.endswith("-chosen"):
                    given["repair"] = replace(command.repair, chosen=command.repair.chosen or CHOSEN)
                if method in AFTER:
                    parent = AFTER[method]
                    model = _out(command.out, parent, most if parent in era_figures.UNLABELLED else share, seed) / MODEL
                    given |= {"method": "rmu", "model": str(model), "steps": 0}
                grid.append(Unlearn(**common | given, out=_out(command.out, method, share, seed)))
    return grid


def _shares(method: str, labelled: Sequence[float]) -> list[float]:
    if method in era_figures.UNLABELLED or method == "era+rmu":
        return [max(labelled)]
    return [share for share in labelled if share > 0 or not METHODS.get(method, METHODS["era"]).misdirects]


def _out(out: Path, method: str, share: float, seed: int) -> Path:
    return out / "runs" / method / f"{share!r}-s{seed}"


def _name(run: Unlearn) -> str:
    assert run.out is not None
    return run.out.parent.name


def _report(command: Era, failed: dict[Path, str]) -> None:
    """Gather all that is finished, also by earlier commands, into tables, summary and figures."""
    results: dict[Key, Result] = {}
    timings = []
    for path in sorted((command.out / "runs").glob("*/*/evaluation.json")):
        run = path.parent
        named = re.fullmatch(r"([\d.e-]+)-s(\d+)", run.name)
        if run.parent.name not in era_figures.ORDER or named is None:
            continue  # not of a study: perhaps set aside
        try:
            key = (run.parent.name, float(named[1]), int(named[2]))
            result = _whole(read_json(path))
            seconds = sum(float(row["seconds"]) for row in read_metrics(run / "timings.csv"))
        except (ValueError, LookupError, TypeError, OSError) as error:
            failed[run] = f"its files are not sound: {error}"
            continue
        results[key] = result
        timings.append({**dict(zip(KEYS, key, strict=True)), "training_seconds": seconds})
    if not results:
        return
    rows = [row for key in results if (row := _row(key, results)) is not None]
    if not rows:  # what they are compared with has failed
        return
    frame = write_table(rows, command.out / RESULTS, KEYS)
    write_table(timings, command.out / TIMINGS, KEYS)
    focus = min(command.labelled, key=lambda share: abs(share - 0.5))
    text = summary(frame, focus) + _samples(results, focus)
    text += "".join(f"\n{out.parent.name}/{out.name} failed: {reason}\n" for out, reason in failed.items())
    write_bytes(command.out / SUMMARY, text.encode())
    era_figures.draw_panels(frame, command.out / "unlearning.png")
    curves = {key: result["relearning"] for key, result in results.items()}
    era_figures.draw_relearning(curves, focus, command.out / "relearning.png")
    era_figures.draw_tokens(frame, command.out / "tokens.png")
    console = Console()
    console.print(Markdown(text))
    console.print(f"Tables and figures: {command.out}")


def _whole(result: Any) -> Result:
    """A run's result; LookupError or TypeError if something that is reported on is missing."""
    for stage in ("trained", "finished"):
        for kind in ("forget", "retain", "forget_routed", "forget_rest"):
            result["losses"][stage][kind]
        result["samples"][stage][0]
    for name in ("relearning", "labelled_documents", "routed_tokens", "parameters"):
        result[name]
    return result  # type: ignore[no-any-return]


def _row(key: Key, results: Mapping[Key, Result]) -> dict[str, Any] | None:
    """A model's losses, and how they compare with what they were before; None until what it is compared with is there.

    Before: of a model that has units or an expert of its own for the topic, with these; of any other, base.
    """
    method, share, seed = key
    result = results[key]
    own = "ablated" in result["losses"]
    bases = [other for other in results if other[0] == "base" and other[2] == seed]
    origin = key if own else ("era", share, seed) if method == "era+rmu" else bases[0] if bases else None
    if origin not in results:
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
    """The study in Markdown.

    Args:
        frame: the rows of ``results.csv``.
        focus: the share of labels whose samples are shown.
    """
    seeds = frame.groupby(["method", "labelled"]).seed.nunique()
    parts = ["# A topic taken out of a language model"]
    parts.append(
        "Nats per token on held-out documents: mean ± half a 95 % interval over seeds "
        f"({seeds.min()} to {seeds.max()} a row). *Unlearning*: how much the loss on the topic has risen; *robust*: "
        f"how much of that is left at the best step of an attack with {HEADLINE} documents; *retain*: the loss on all "
        "else, and what it cost."
    )
    measures = [name for name in ("unlearning", "robust", "retain", "retain_cost") if name in frame]
    cells = {name: _cells(frame, name) for name in measures}
    keys = sorted(seeds.index, key=lambda key: (era_figures.ORDER.index(key[0]), key[1]))
    rows = [[method, f"{share:.0%}", *(cells[name][method, share] for name in measures)] for method, share in keys]
    parts.append(markdown(["method", "labelled", *(name.replace("_", " ") for name in measures)], rows))
    tokens = frame[frame.labelled == focus]
    if len(tokens):
        cells = {name: _cells(tokens, name) for name in ("forget_routed", "forget_rest")}
        methods = sorted(set(tokens.method), key=era_figures.ORDER.index)
        parts.append(f"## Loss on the topic's documents at {focus:.0%} labelled")
        rows = [[method, *(found[method, focus] for found in cells.values())] for method in methods]
        parts.append(markdown(["method", "words that are routed", "other words"], rows))
    return "\n\n".join(parts) + "\n"


def _cells(frame: pd.DataFrame, measure: str) -> dict[tuple[str, float], str]:
    found = aggregate(frame, measure, KEYS[:2]).to_dict("records")
    return {(row["method"], row["labelled"]): shown_mean(row) for row in found}


def _samples(results: Mapping[Key, Result], focus: float) -> str:
    """What some models make of the beginning of a document of the topic, before and after."""
    parts = ["\n## Samples, from the beginnings of held-out documents of the topic"]
    for key in sorted(results, key=lambda key: (era_figures.ORDER.index(key[0]), key[1:])):
        method, share, seed = key
        if seed == 0 and (share == focus or method in era_figures.UNLABELLED):
            samples = results[key]["samples"]
            parts.append(f"**{method}**, trained: {samples['trained'][0]}")
            if "ablated" in results[key]["losses"] or "rmu" in method:
                parts.append(f"**{method}**, finished: {samples['finished'][0]}")
    return "\n\n".join(parts) + "\n"
