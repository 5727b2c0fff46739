"""``routed-rl oversight``: compares methods over oversight levels and seeds. An interrupted study continues."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.markdown import Markdown

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.experiments.common.agents.grid import check_options, train_all
from routed_rl.experiments.common.agents.options import EARLY_STOPPED, PRESETS, MethodName, Train
from routed_rl.experiments.oversight.options import Oversight
from routed_rl.runs import write_bytes
from routed_rl.runs.grid import is_finished, open_backend
from routed_rl.runs.studies import check_study, start_study

RESULTS, TIMINGS, SUMMARY = "results.csv", "timings.csv", "summary.md"
STRICT = "strict"
NOISE = re.compile(r"(miss|flip)-([01]|0?\.\d+|1\.0)(-hard)?")
USUAL_FOCUS = 0.1


def main(command: Oversight) -> None:
    _check(command)
    nearest = min(command.levels, key=lambda level: abs(level - USUAL_FOCUS))
    command = replace(
        command,
        out=Path(os.path.abspath(command.out)),  # processes in other working directories need an absolute path
        focus=nearest if command.focus is None else command.focus,
    )
    grid = _grid(command)
    with user_input():
        check_study(command.out, _identity(command))
    check_options(grid, command.parallel_seeds)
    needed = not all(is_finished(run.out) for run in grid if run.out is not None)
    with open_backend(
        command.backend, command.ray_address, command.workers, command.out, needed, command.device
    ) as backend:
        start_study(command.out, _identity(command))
        failed = train_all(grid, command.workers, backend, command.parallel_seeds)
    _report(command, failed)
    if failed:
        for out, reason in failed.items():
            print(f"routed-rl: failed: {_name(out)}: {reason}", file=sys.stderr)
        raise UserError(
            f"{len(failed)} runs failed for the reasons above; the results of the others are in {command.out / RESULTS}"
        )


def variant(name: str) -> dict[str, Any]:
    """The train options of a method that the command line of the study names.

    Raises:
        ValueError: if the name is unknown.
    """
    if name in get_args(MethodName):
        return {"method": name}
    if name == STRICT:
        return {"method": "routing", "unlabelled": "none"}
    if found := NOISE.fullmatch(name):
        return {"method": "routing", f"{found[1]}_rate": float(found[2]), "hard_first": found[3] is not None}
    known = ", ".join((*get_args(MethodName), STRICT))
    raise ValueError(f"unknown method {name!r}; choose from {known}, miss-RATE[-hard] and flip-RATE[-hard]")


def _check(command: Oversight) -> None:
    at_least(1, seeds=command.seeds, workers=command.workers, parallel_seeds=command.parallel_seeds)
    if command.total_steps is not None:
        at_least(1, total_steps=command.total_steps)
    if command.workers > 4 * (os.cpu_count() or 1) and command.backend == "local":
        raise UserError(
            f"--workers must be at most {4 * (os.cpu_count() or 1)} here, four per core, got {command.workers}"
        )
    if command.backend == "ray" and command.device != "cpu":
        raise UserError(f"--backend ray trains on CPUs only; leave out --device {command.device}")
    for name, given in (("methods", command.methods), ("levels", command.levels)):
        if not given or len(set(given)) < len(given):
            raise UserError(
                f"--{name} must name at least one and each only once, got {' '.join(map(str, given)) or 'none'}"
            )
    focus = [] if command.focus is None else [command.focus]
    if bad := [level for level in (*command.levels, *focus) if not 0 < level <= 1]:
        raise UserError(f"--levels and --focus must be above 0 and at most 1, got {bad[0]}")
    if focus and focus[0] not in command.levels and not command.controls:
        raise UserError(
            f"--focus must be one of --levels {' '.join(map(str, command.levels))} unless --controls are given, "
            f"got {focus[0]}"
        )
    with user_input():
        for name in (*command.methods, *command.controls):
            variant(name)


def _grid(command: Oversight) -> list[Train]:
    """The runs of the study: all methods at all levels, and the controls at the focus level.

    The directory of a run is ``runs/METHOD/LEVEL-sSEED``.
    """
    assert command.focus is not None
    cells = [(name, level) for level in command.levels for name in command.methods]
    cells += [(name, command.focus) for name in command.controls if (name, command.focus) not in cells]
    mine = _identity(command)
    options = {name: mine[name] for name in ("world", "total_steps", "device")}
    base = replace(PRESETS[command.preset], **options)
    return [
        replace(
            base, **variant(name), oversight=level, seed=seed, out=command.out / "runs" / name / f"{level!r}-s{seed}"
        )
        for seed in range(command.seeds)
        for name, level in cells
    ]


def _identity(command: Oversight) -> dict[str, Any]:
    """The options that all runs of a study share. Methods, levels and seeds may be added later."""
    preset = PRESETS[command.preset]
    steps = preset.total_steps if command.total_steps is None else command.total_steps
    world = command.world or preset.world
    return {"preset": command.preset, "total_steps": steps, "world": world, "device": command.device}


def _name(out: Path) -> str:
    return f"{out.parent.name}/{out.name}"


def _report(command: Oversight, failed: dict[Path, str]) -> None:
    """Write tables, summary and figures of all finished runs, including those of earlier commands."""
    from routed_rl.experiments.common.agents.limits import limits
    from routed_rl.experiments.oversight import figures as study_figures
    from routed_rl.experiments.oversight import study
    from routed_rl.runs.tables import write_table

    rows, timings, runs = [], [], {}
    for out in sorted(result.parent for result in (command.out / "runs").glob("*/*/evaluation.json")):
        if out in failed:
            continue
        method = out.parent.name
        try:
            rows += study.run_rows(method, out)
            timings.append(study.run_timing(method, out))
            runs[out] = method
        except (ValueError, KeyError, IndexError, OSError) as error:
            failed[out] = f"its files are damaged: {error}"
    if not rows:
        return
    frame = write_table(rows, command.out / RESULTS, study.KEYS)
    write_table(timings, command.out / TIMINGS, study.KEYS)
    gridworld = _identity(command)["world"] == "gridworld"
    exact = limits if gridworld else None
    focus = command.focus
    assert focus is not None
    noise = study.noise_rows(frame, focus, NOISE)
    text = study.summary(frame, focus, {_name(out): reason for out, reason in failed.items()}, exact)
    text += study.noise_summary(noise) if len(noise) else ""
    write_bytes(command.out / SUMMARY, text.encode())

    clean = frame[~frame.method.map(lambda method: NOISE.fullmatch(method) is not None)]
    study_figures.draw_returns(frame[frame.method.isin(command.methods)], command.out / "returns.png", exact)
    study_figures.draw_bars(clean, focus, command.out / "methods.png", exact)
    shown = study.compared(clean[clean.oversight == focus])
    curves = {
        (str(method), str(policy)): [out for out in runs if out.parent.name == method and _level(out) == focus]
        for method, policy in shown[["method", "policy"]].drop_duplicates().itertuples(index=False)
        # Sharpened policies are evaluated only at the end. The curve of early stopping is that of naive.
        if method in command.methods and not policy.startswith("sharpened") and method != EARLY_STOPPED
    }
    if curves:
        study_figures.draw_curves(curves, focus, command.out / "curves.png", exact)
    if len(noise):
        study_figures.draw_noise(noise, focus, command.out / "noise.png")
    routed = [out for out, method in runs.items() if method == "routing" and _level(out) == focus]
    if routed and gridworld:
        try:
            study_figures.draw_arrows(routed[0], command.out / "arrows.png")
        except (ValueError, OSError) as error:
            failed[routed[0]] = f"its model is damaged: {error}"
    console = Console()
    console.print(Markdown(text))
    console.print(f"Tables and figures: {command.out}")


def _level(out: Path) -> float:
    return float(out.name.rpartition("-s")[0])
