"""``routed-rl oversight``: methods compared over levels of oversight and seeds, from one command, resumable."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.markdown import Markdown

from experiments.commands import PRESETS, MethodName, Oversight, Train
from experiments.errors import UserError, at_least, user_input
from experiments.grid import Backend, is_finished, train_all
from routed_rl.runs import RunError, check_run, read_json, run_commands, write_bytes, write_json

STUDY, RESULTS, TIMINGS, SUMMARY = "study.json", "results.csv", "timings.csv", "summary.md"
STRICT = "strict"
NOISE = re.compile(r"(miss|flip)-(0?\.\d+)(-hard)?")


def main(command: Oversight) -> None:
    command = replace(command, out=Path(os.path.abspath(command.out)))  # which processes elsewhere understand
    _check(command)
    grid = {run.out: run for run in _grid(command)}
    names = {out: out.name.rsplit("-", 2)[0] for out in grid if out is not None}
    with user_input():
        _open(command)
    failed: dict[Path, str] = {}
    for out, run in list(grid.items()):
        assert out is not None
        try:
            check_run(out, run.config(), run.seed)
        except (RunError, OSError) as error:
            failed[out] = str(error)
            del grid[out]
    with _backend(command) as backend:
        failed |= train_all(list(grid.values()), command.workers, backend)
    _report(command, names, failed)
    if failed:
        for out, reason in failed.items():
            print(f"routed-rl: failed: {out.name}: {reason}", file=sys.stderr)
        raise UserError(f"{len(failed)} of {len(names)} runs failed; the others are in {command.out / RESULTS}")


def variant(name: str) -> dict[str, Any]:
    """The train options behind a method's name on the study's command line.

    Raises:
        ValueError: for an unknown name.
    """
    if name in get_args(MethodName):
        return {"method": name}
    if name == STRICT:
        return {"method": "routing", "unlabelled": "none"}
    if (found := NOISE.fullmatch(name)) and float(found[2]) <= 1:
        return {"method": "routing", f"{found[1]}_rate": float(found[2]), "hard_first": found[3] is not None}
    known = ", ".join((*get_args(MethodName), STRICT))
    raise ValueError(f"unknown method {name!r}; the methods are {known}, miss-RATE and flip-RATE (and -hard)")


def _check(command: Oversight) -> None:
    at_least(1, seeds=command.seeds, workers=command.workers)
    if command.total_steps is not None:
        at_least(1, total_steps=command.total_steps)
    if command.workers > 4 * (os.cpu_count() or 1) and command.backend == "local":
        raise UserError(f"--workers {command.workers} is more than four for each of {os.cpu_count()} cores")
    for name, given in (("methods", command.methods), ("levels", command.levels)):
        if not given or len(set(given)) < len(given):
            raise UserError(f"--{name} must be at least one, each once, got {' '.join(map(str, given)) or 'none'}")
    if bad := [level for level in (*command.levels, command.focus) if not 0 < level <= 1]:
        raise UserError(f"--levels and --focus must lie above 0 and at most at 1, got {bad[0]}")
    with user_input():
        for name in (*command.methods, *command.controls):
            variant(name)


def _grid(command: Oversight) -> list[Train]:
    """Every method at every level, and the controls at the focus level."""
    cells = [(name, level) for level in command.levels for name in command.methods]
    cells += [(name, command.focus) for name in command.controls if (name, command.focus) not in cells]
    base = PRESETS[command.preset]
    steps = base.total_steps if command.total_steps is None else command.total_steps
    return [
        replace(
            base,
            **variant(name),
            world=command.world,
            oversight=level,
            seed=seed,
            total_steps=steps,
            out=command.out / "runs" / f"{name}-{level:g}-s{seed}",
        )
        for seed in range(command.seeds)
        for name, level in cells
    ]


def _open(command: Oversight) -> None:
    """Start a study in its directory, or go on with it; more methods, levels and seeds may be added.

    Raises:
        ValueError: if the directory holds anything else.
    """
    base = PRESETS[command.preset]
    steps = command.total_steps or base.total_steps
    mine = {"preset": command.preset, "total_steps": steps, "world": command.world}
    if (command.out / STUDY).exists():
        there = read_json(command.out / STUDY)
        if there != mine:
            raise ValueError(f"{str(command.out)!r} holds another study, of {there}, not of {mine}; name another --out")
    elif command.out.exists() and (not command.out.is_dir() or any(command.out.iterdir())):
        raise ValueError(f"{str(command.out)!r} is not empty and holds no study; name another --out")
    else:
        command.out.mkdir(parents=True, exist_ok=True)
        write_json(command.out / STUDY, mine)


@contextmanager
def _backend(command: Oversight) -> Iterator[Backend]:
    if command.backend == "local":
        yield run_commands
        return
    from routed_rl.runs.ray import ray_pool

    with ExitStack() as stack:
        with user_input():
            pool = stack.enter_context(ray_pool(command.ray_address, command.workers, command.out))
        yield pool


def _report(command: Oversight, names: Mapping[Path, str], failed: dict[Path, str]) -> None:
    """Gather what is finished into tables, summary and figures."""
    from experiments import study, study_figures
    from experiments.limits import limits

    rows, timings, complete = [], [], {}
    for out, name in names.items():
        if out in failed or not is_finished(out):
            continue
        try:
            rows += study.run_rows(name, out)
            timings.append(study.run_timing(name, out))
            complete[out] = name
        except (ValueError, KeyError, IndexError, OSError) as error:
            failed[out] = f"its files are not sound: {error}"
    if not rows:
        return
    frame = study.table(rows, command.out / RESULTS)
    study.table(timings, command.out / TIMINGS)
    noisy = frame.method.isin([*filter(NOISE.fullmatch, set(names.values()))])
    main_rows = frame[~noisy]
    exact = limits if command.world == "gridworld" else None
    text = study.summary(main_rows, command.focus, {out.name: reason for out, reason in failed.items()}, exact)
    at_focus = {out: name for out, name in complete.items() if out.name.rsplit("-", 2)[1] == f"{command.focus:g}"}
    by_level = main_rows[main_rows.method.isin(command.methods)]
    study_figures.draw_returns(by_level, command.out / "returns.png", exact)
    if at_focus:
        shown = study.compared(main_rows)
        curves = {
            (str(method), str(policy)): [out for out, name in at_focus.items() if name == method]
            for method, policy in shown[["method", "policy"]].drop_duplicates().itertuples(index=False)
            if method in at_focus.values() and not policy.startswith("sharpened")
        }
        study_figures.draw_curves(curves, command.focus, command.out / "curves.png", exact)
        study_figures.draw_bars(main_rows, command.focus, command.out / "methods.png", exact)
        routed = [out for out, name in at_focus.items() if name == "routing"]
        if routed and command.world == "gridworld":
            study_figures.draw_arrows(routed[0], command.out / "arrows.png")
    noise = study.noise_rows(frame, command.focus, NOISE)
    if len(noise):
        text += study.noise_summary(noise)
        study_figures.draw_noise(noise, command.focus, command.out / "noise.png")
    write_bytes(command.out / SUMMARY, text.encode())
    console = Console()
    console.print(Markdown(text))
    console.print(f"Tables and figures: {command.out}")
