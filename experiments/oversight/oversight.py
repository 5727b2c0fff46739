"""``routed-rl oversight``: compares methods over oversight levels and seeds. An interrupted study continues."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from routed_rl.errors import UserError
from routed_rl.experiments.common.agents.grid import train_command
from routed_rl.experiments.common.agents.options import PRESETS, Train
from routed_rl.experiments.common.agents.worlds import WorldTask, task_of
from routed_rl.experiments.common.studies import run_and_show
from routed_rl.experiments.oversight.options import Oversight
from routed_rl.options.oversight import StudyOptions
from routed_rl.rl import OversightStudy
from routed_rl.rl.oversight_study.grid import check_options, kind
from routed_rl.rl.oversight_study.study import OversightGrid
from routed_rl.rl.oversight_study.table import NAIVE
from routed_rl.rl.oversight_study.tasks import wanted_of
from routed_rl.runs.studies import Findings, Study

TITLES = {
    "optimal": "optimum",
    "diamond": "Diamond seeker blind to Ghost",
    "any": "any terminal state",
    "naive": NAIVE,
}
"""The reference policies that figures and summaries name, with their titles."""


def main(command: Oversight) -> None:
    run_and_show(study_of(command), command)


def study_of(command: Oversight) -> Study:
    """The study that a command asks for: in a world of this project, or in an environment of the user's own."""
    if command.env is None:
        if command.outcomes:
            raise UserError(f"--outcomes belongs to --env, got {' '.join(command.outcomes)} without it")
        return PublishedStudy(command)
    if command.world is not None or command.preset not in (None, "own"):
        name, value = ("preset", command.preset) if command.world is None else ("world", command.world)
        raise UserError(f"--{name} {value} does not go with --env {command.env}: leave out one of them")
    given = {field.name: getattr(command, field.name) for field in fields(StudyOptions)}
    return OversightStudy(**{name: value for name, value in given.items() if value is not None})


class PublishedStudy(OversightGrid[Train]):
    """The study of ``routed-rl oversight`` in one of the worlds of this project."""

    FIGURES = (*OversightGrid.FIGURES, "arrows")

    def __init__(self, command: Oversight) -> None:
        self.options = command
        self.methods, self.levels, self.controls = command.methods, command.levels, command.controls
        self.focus, self.seeds, self.parallel_seeds = command.focus, command.seeds, command.parallel_seeds
        self.out = Path(os.path.abspath(command.out))  # processes in other working directories need an absolute path
        self.device = command.device
        self.limits = _limits if self.base.world == "gridworld" else None
        self.KIND = kind(train_command, command.parallel_seeds)

    @property
    def base(self) -> Train:
        preset = PRESETS[self.options.preset or "quick"]
        mine = {name: getattr(self.options, name) for name in ("world", "total_steps", "device", "reward")}
        return replace(preset, **{name: value for name, value in mine.items() if value is not None})

    def _wanted(self) -> str:
        return wanted_of(WorldTask(self.base.config()).values)

    def _check(self, here: bool) -> None:
        super()._check(here)
        workers = self.options.workers
        if here and workers is not None and workers > 4 * (os.cpu_count() or 1):
            raise UserError(f"--workers must be at most {4 * (os.cpu_count() or 1)} here, four per core, got {workers}")

    def _check_runs(self, runs: Sequence[Train]) -> None:
        check_options(runs, task_of, self.parallel_seeds)

    def _identity(self) -> dict[str, Any]:
        """The options that all runs of a study share. Methods, levels and seeds may be added later."""
        names = ("preset", "total_steps", "world", "device")
        identity = {name: getattr(self.base, name) for name in names}
        return identity if self.base.reward is None else {**identity, "reward": self.base.reward}

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs, also of earlier commands. None: no run is finished."""
        from routed_rl.experiments.common.agents.worlds import load_run
        from routed_rl.experiments.oversight.figures import draw_arrows

        gridworld = self.base.world == "gridworld"
        report = self._report()
        found = report.find(failed)
        routed = map(Path, report.runs.get("routing", ()))
        at_focus = [run for run in routed if run.name.startswith(f"{self.main_level!r}-s")]
        sound = [run for run in at_focus if found is not None and run not in found.failed]
        if found is not None and sound and gridworld:
            try:
                load_run(sound[0])
            except (ValueError, OSError) as error:
                found.failed[sound[0]] = f"its model is damaged: {error}"
            else:
                found.figures = {**found.figures, "arrows": lambda: draw_arrows(sound[0])}
        return found


def _limits(level: float) -> dict[str, float]:
    """Exact returns in the default world, by title."""
    from routed_rl.experiments.common.agents.limits import limits

    found = limits(level)
    return {title: found[name] for name, title in TITLES.items()}
