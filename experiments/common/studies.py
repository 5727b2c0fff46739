"""What every command that runs a study does: run it, show its results, say what failed."""

from __future__ import annotations

import sys

import pandas as pd

from routed_rl.experiments.common.display import show_markdown, show_table
from routed_rl.options import Workers
from routed_rl.runs.studies import RunsFailedError, Study


def run_and_show(study: Study, where: Workers) -> None:
    """Run a study, print its summary, and a line for each failed run.

    Raises:
        UserError: as :meth:`~routed_rl.runs.studies.Study.run`.
    """
    try:
        study.run(workers=where.workers, backend=where.backend, ray_address=where.ray_address)
    except RunsFailedError as error:
        if error.written:
            _show(study)
        elif (study.out / study.SUMMARY).is_file():
            print(f"routed-rl: the tables in {study.out} are those of an earlier start", file=sys.stderr)
        for out, reason in error.failed.items():
            print(f"routed-rl: failed: {out.parent.name}/{out.name}: {reason}", file=sys.stderr)
        raise
    _show(study)


def show_stages(plan: pd.DataFrame) -> None:
    """Print what a study of stages would do; ``plan`` has a row per stage."""
    shown = plan.drop(columns="trains").astype(str)
    show_table("Stages of the study", list(shown), shown.to_numpy().tolist(), left=range(shown.shape[1]))
    runs = plan[plan.reason != "is finished"]
    print(f"{len(runs)} of {len(plan)} stages would run; {runs.trains.sum()} of them train or attack a model")


def _show(study: Study) -> None:
    """Print what the run has just written; nothing if no run is finished."""
    if (study.out / study.SUMMARY).is_file():
        show_markdown((study.out / study.SUMMARY).read_text(encoding="utf-8"))
        print(f"Tables and figures: {study.out}; all of it on one page: {study.out / study.REPORT}")
