"""What every command that runs a study does: run it, show its results, say what failed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from routed_rl.errors import user_input
from routed_rl.experiments.common.display import show_markdown, show_table
from routed_rl.options import Workers
from routed_rl.runs import read_json
from routed_rl.runs.grid import RESULT
from routed_rl.runs.studies import RunsFailedError, Study, StudyDirectory, started_study


@dataclass(frozen=True)
class LocalStudy(StudyDirectory):
    """A study whose models are trained one after another in this process.

    Attributes:
        out: the study's directory.
        identity: what all of its models share.
    """

    out: Path
    identity: Mapping[str, Any]

    def _identity(self) -> Mapping[str, Any]:
        return self.identity

    def run_and_show(self, runs: Iterable[Path], train: Callable[[], None]) -> None:
        """Train, write tables, figures and the report, and print the summary.

        Args:
            runs: where the results of the study's models will be, as for ``planned.json``.
            train: trains every model that is not finished.

        Raises:
            UserError: for a directory that the study cannot use, or results that cannot be read.
        """
        with started_study(self.out, self.identity):
            self._note(runs)
            train()
            with user_input():
                self._write(self._found())
        show_study(self)


def finished_runs(out: Path) -> dict[Path, dict[str, Any]]:
    """Return the result of each finished run in the folder ``runs`` of a study, by its directory.

    Raises:
        ValueError: if a result is damaged.
    """
    return {path.parent: read_json(path) for path in sorted((out / "runs").glob(f"*/{RESULT}"))}


def picture(title: str, draw: Callable[[Path], None]) -> tuple[str, bytes]:
    """Return a title, and the PNG file that a function draws to a path."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        draw(path)
        return title, path.read_bytes()


def run_and_show(study: Study, where: Workers) -> None:
    """Run a study, print its summary, and a line for each failed run.

    Raises:
        UserError: as :meth:`~routed_rl.runs.studies.Study.run`.
    """
    try:
        study.run(workers=where.workers, backend=where.backend, ray_address=where.ray_address)
    except RunsFailedError as error:
        if error.written:
            show_study(study)
        elif (study.out / study.SUMMARY).is_file():
            print(f"routed-rl: the tables in {study.out} are those of an earlier start", file=sys.stderr)
        for out, reason in error.failed.items():
            print(f"routed-rl: failed: {out.parent.name}/{out.name}: {reason}", file=sys.stderr)
        raise
    show_study(study)


def show_stages(plan: pd.DataFrame) -> None:
    """Print what a study of stages would do; ``plan`` has a row per stage."""
    shown = plan.drop(columns="trains").astype(str)
    show_table("Stages of the study", list(shown), shown.to_numpy().tolist(), left=range(shown.shape[1]))
    runs = plan[plan.reason != "is finished"]
    print(f"{len(runs)} of {len(plan)} stages would run; {runs.trains.sum()} of them train or attack a model")


def show_study(study: StudyDirectory) -> None:
    """Print what the run has just written; nothing if no run is finished."""
    if (study.out / study.SUMMARY).is_file():
        show_markdown((study.out / study.SUMMARY).read_text(encoding="utf-8"))
        print(f"Tables and figures: {study.out}; all of it on one page: {study.out / study.REPORT}")
