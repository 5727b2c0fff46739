"""``routed-rl oversight``: compares methods over oversight levels and seeds. An interrupted study continues."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.experiments.common.agents.grid import check_options, kind
from routed_rl.experiments.common.agents.options import PRESETS, Train
from routed_rl.experiments.common.studies import run_and_show
from routed_rl.experiments.oversight.options import Oversight
from routed_rl.options.oversight import MethodName
from routed_rl.rl import OversightStudy
from routed_rl.rl.oversight_study.study import USUAL_FOCUS
from routed_rl.rl.oversight_study.table import NOISE
from routed_rl.runs.grid import is_finished
from routed_rl.runs.studies import Findings, Study

STRICT, PREDICTED = "strict", "routing-predicted"


def main(command: Oversight) -> None:
    run_and_show(PublishedStudy(command), command)


class PublishedStudy(Study):
    """The study of ``routed-rl oversight``: methods of this project in one of its worlds."""

    FIGURES = (*OversightStudy.FIGURES, "arrows")

    def __init__(self, command: Oversight) -> None:
        nearest = min(command.levels, key=lambda level: abs(level - USUAL_FOCUS), default=USUAL_FOCUS)
        self.options = replace(command, focus=nearest if command.focus is None else command.focus)
        self.focus = self.options.focus
        self.out = Path(os.path.abspath(command.out))  # processes in other working directories need an absolute path
        self.device = command.device
        self.KIND = kind(command.parallel_seeds)

    def plan(self) -> pd.DataFrame:
        """Return a row per run: ``run``, ``method``, ``oversight``, ``seed``, and whether it is ``finished``."""
        rows = [
            (
                run.out.relative_to(self.out).as_posix(),
                run.out.parent.name,
                run.oversight,
                run.seed,
                is_finished(run.out),
            )
            for run in self._prepare(True)
            if run.out is not None
        ]
        return pd.DataFrame(rows, columns=["run", "method", "oversight", "seed", "finished"])

    def _prepare(self, here: bool) -> list[Train]:
        _check(self.options, here)
        runs = self._grid()
        check_options(runs, self.options.parallel_seeds)
        return runs

    def _grid(self) -> list[Train]:
        """The runs of the study: all methods at all levels, and the controls at the focus level.

        The directory of a run is ``runs/METHOD/LEVEL-sSEED``.
        """
        options = self.options
        cells = [(name, level) for level in options.levels for name in options.methods]
        cells += [(name, self.focus) for name in options.controls if (name, self.focus) not in cells]
        mine = self._identity()
        base = replace(PRESETS[options.preset], **{name: mine[name] for name in ("world", "total_steps", "device")})
        place = self.out / "runs"
        return [
            replace(base, **variant(name, base), oversight=level, seed=seed, out=place / name / f"{level!r}-s{seed}")
            for seed in range(options.seeds)
            for name, level in cells
        ]

    def _identity(self) -> dict[str, Any]:
        """The options that all runs of a study share. Methods, levels and seeds may be added later."""
        options, preset = self.options, PRESETS[self.options.preset]
        steps = preset.total_steps if options.total_steps is None else options.total_steps
        world = options.world or preset.world
        return {"preset": options.preset, "total_steps": steps, "world": world, "device": options.device}

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs, also of earlier commands. None: no run is finished."""
        from routed_rl.experiments.common.agents.limits import limits
        from routed_rl.experiments.oversight.figures import draw_arrows, load_run

        runs: dict[str, list[Path]] = {}
        for result in sorted((self.out / "runs").glob("*/*/evaluation.json")):
            runs.setdefault(result.parent.parent.name, []).append(result.parent)
        from routed_rl.experiments.common.agents.recipe import values_of

        world = self._identity()["world"]
        values, gridworld = values_of(replace(Train(), world=world).config()), world == "gridworld"
        exact = limits if gridworld else None
        wanted = max(values, key=lambda outcome: values[outcome])
        study = OversightStudy(runs, wanted, self.focus, self.options.methods, exact)
        found = study.find(failed)
        at_focus = [run for run in runs.get("routing", ()) if run.name.startswith(f"{self.focus!r}-s")]
        sound = [run for run in at_focus if found is not None and run not in found.failed]
        if found is not None and sound and gridworld:
            try:
                load_run(sound[0])
            except (ValueError, OSError) as error:
                found.failed[sound[0]] = f"its model is damaged: {error}"
            else:
                found.figures = {**found.figures, "arrows": lambda: draw_arrows(sound[0])}
        return found

    def _failure(self, failed: Mapping[Path, str], runs: Sequence[Train]) -> str:
        return f"{len(failed)} runs failed; the others are in {self.out / 'results.csv'}"


def variant(name: str, base: Train) -> dict[str, Any]:
    """The train options of a method that the command line of the study names. ``base`` has the other options.

    Raises:
        ValueError: if the name is unknown.
    """
    if name in get_args(MethodName):
        return {"method": name}
    if name == STRICT:
        return {"method": "routing", "unlabelled": "none"}
    if name == PREDICTED:
        return {"method": "routing", "unlabelled": "predicted", "learner": replace(base.learner, solo=1.0)}
    if found := NOISE.fullmatch(name):
        return {"method": "routing", f"{found[1]}_rate": float(found[2]), "hard_first": found[3] is not None}
    known = ", ".join((*get_args(MethodName), STRICT, PREDICTED))
    raise ValueError(f"unknown method {name!r}; choose from {known}, miss-RATE[-hard] and flip-RATE[-hard]")


def _check(command: Oversight, here: bool) -> None:
    """UserError for the first option that no study can have."""
    at_least(1, seeds=command.seeds, parallel_seeds=command.parallel_seeds)
    if command.total_steps is not None:
        at_least(1, total_steps=command.total_steps)
    if here and command.workers is not None and command.workers > 4 * (os.cpu_count() or 1):
        raise UserError(
            f"--workers must be at most {4 * (os.cpu_count() or 1)} here, four per core, got {command.workers}"
        )
    if not here and command.device != "cpu":
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
            variant(name, PRESETS[command.preset])
