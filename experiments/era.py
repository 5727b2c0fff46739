"""``routed-rl era``: ways to take a topic out of a language model, compared over shares of labels; resumable."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from experiments import era_figures
from experiments.errors import UserError, at_least, user_input
from experiments.language import STORIES, open_text
from experiments.process import check_device, one_thread
from experiments.study_directory import check_study, start_study
from experiments.tables import aggregate, markdown, shown_mean, write_table
from experiments.text_commands import PRESETS, Era, TextOptions, Unlearn
from experiments.unlearn import METHODS, MODEL, Pipeline, run_config
from experiments.workers import PYTHON, Kind, is_finished, open_backend, options, run_all
from routed_rl.runs import read_json, read_metrics, write_bytes

RESULTS, TIMINGS, SUMMARY = "results.csv", "timings.csv", "summary.md"
KEYS = ("method", "labelled", "seed")
UNLABELLED = ("base", "control")
"""Methods that use no labels, but for the words that are reported on."""
AFTER = {"rmu": "base", "era+rmu": "era"}
"""Methods that go on from another's model."""
QUICK = {"methods": ("base", "filtering", "era-parameter"), "labelled": (0.5,), "seeds": 1}
MEASURES = {
    "unlearning": "forget loss, risen by",
    "robust": "… after relearning",
    "retain": "retain loss",
}


def main(command: Era) -> None:
    one_thread()
    if command.quick:
        command = replace(command, **QUICK)
    command = replace(command, out=Path(os.path.abspath(command.out)), corpora=Path(os.path.abspath(command.corpora)))
    _check(command)
    with user_input():
        check_device(command.device)
        text = open_text(command)
        identity = {**_shared(command), "text": text.digest}
        check_study(command.out, identity)
        grid = _grid(command)
        for run in grid:
            if Path(run.model).is_dir() or run.model == command.model:
                Pipeline(run, text)
    needed = not all(is_finished(run.out) for run in grid if run.out is not None)
    failed: dict[Path, str] = {}
    with open_backend(command.backend, command.ray_address, command.workers, command.out, needed) as backend:
        start_study(command.out, identity)
        for wave in (False, True):
            runs = [run for run in grid if (_name(run) in AFTER) == wave]
            runs = [run for run in runs if not wave or Path(run.model).is_dir()]
            failed |= run_all(runs, KIND, command.workers, backend)
    _report(command, failed)
    if failed:
        for out, reason in failed.items():
            print(f"routed-rl: failed: {out.parent.name}/{out.name}: {reason}", file=sys.stderr)
        raise UserError(f"{len(failed)} runs failed; the others are in {command.out / RESULTS}")


def _command(batch: Sequence[Unlearn]) -> list[str]:
    (run,) = batch
    usual = Unlearn(preset=run.preset, **PRESETS[run.preset])
    return [*PYTHON, "experiments.cli", "unlearn", "--preset", run.preset, *options(run, usual)]


def _total(run: Unlearn) -> int:
    return max(run.steps, 1)


KIND = Kind(config=run_config, command=_command, total=_total, counter="step")


def _check(command: Era) -> None:
    at_least(1, seeds=command.seeds, workers=command.workers)
    for name, given in (("methods", command.methods), ("labelled", command.labelled)):
        if not given or len(set(given)) < len(given):
            raise UserError(f"--{name} must be at least one, each once, got {' '.join(map(str, given)) or 'none'}")
    if bad := [share for share in command.labelled if not 0 <= share <= 1]:
        raise UserError(f"--labelled must lie within 0 … 1, got {bad[0]}")
    for name, parent in AFTER.items():
        if name in command.methods and parent not in command.methods:
            raise UserError(f"--methods {name} goes on from {parent}'s models: add {parent}")


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
                name, _, mode = method.partition("-")
                given: dict[str, Any] = {"method": name, "seed": seed, "labelled": share, "preset": command.preset}
                if mode:
                    given["mode"] = mode
                if method in AFTER:
                    parent = AFTER[method]
                    model = _out(command.out, parent, most if parent in UNLABELLED else share, seed) / MODEL
                    given |= {"method": "rmu", "model": str(model), "steps": 0}
                grid.append(Unlearn(**common | given, out=_out(command.out, method, share, seed)))
    return grid


def _shares(method: str, labelled: Sequence[float]) -> list[float]:
    if method in UNLABELLED or method == "era+rmu":
        return [max(labelled)]
    return [share for share in labelled if share > 0 or not METHODS.get(method, METHODS["era"]).misdirects]


def _out(out: Path, method: str, share: float, seed: int) -> Path:
    return out / "runs" / method / f"{share!r}-s{seed}"


def _name(run: Unlearn) -> str:
    assert run.out is not None
    return run.out.parent.name
