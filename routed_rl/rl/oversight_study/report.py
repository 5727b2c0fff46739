"""Tables and figures of runs that are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from routed_rl.options.oversight import EARLY_STOPPED
from routed_rl.paths import expanded
from routed_rl.rl.oversight_study import table
from routed_rl.rl.oversight_study.charts import curves_chart, returns_chart
from routed_rl.rl.oversight_study.figures import draw_bars, draw_curves, draw_noise, draw_returns, looks
from routed_rl.rl.oversight_study.methods import NOISE
from routed_rl.rl.oversight_study.table import Limits
from routed_rl.runs import RunError
from routed_rl.runs.charts import Chart
from routed_rl.runs.files import StrPath
from routed_rl.runs.grid import is_finished
from routed_rl.runs.studies import Findings, Reported
from routed_rl.runs.tables import tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL_FOCUS = 0.1


@dataclass(eq=False)
class OversightReport(Reported):
    """Methods compared over oversight levels and seeds, from the directories of their runs.

    >>> report = OversightReport({"routing": ["runs/a", "runs/b"], "naive": ["runs/c"]})  # doctest: +SKIP
    >>> report.figure("returns").savefig("returns.png")  # doctest: +SKIP

    Attributes:
        runs: run directories by the name of their method, as ``routed-rl train`` leaves them. A run's oversight level
            and seed are read from its directory. Names of methods are free; "routing" stands for a routed agent.
        wanted: the wanted outcome, to which routed agents are steered.
        focus: oversight level of learning curves, bars and label noise. None: the level nearest to 0.1.
        methods: methods in the figure of all levels and in the learning curves. None: all.
        limits: exact returns of reference policies, by title, as a function of the oversight level. None: not drawn.
    """

    runs: Mapping[str, Sequence[StrPath]]
    wanted: str = "diamond"
    focus: float | None = None
    methods: Sequence[str] | None = None
    limits: Limits | None = None

    TITLE = "Oversight study"
    FIGURES = ("returns", "methods", "curves", "noise")

    def __post_init__(self) -> None:
        for method, runs in self.runs.items():
            if isinstance(runs, str | os.PathLike):
                raise ValueError(f"the runs of {method!r} must be a list of directories, got {os.fspath(runs)!r}")

    def grid(self) -> pd.DataFrame:
        """Return a row per run: ``method``, ``oversight``, ``seed``, ``run``, and whether it is ``finished``.

        Raises:
            RunError: for a directory that holds no run.
        """
        rows = [
            (method, record.config["oversight"], record.seed, str(expanded(run)), is_finished(expanded(run)))
            for method, runs in self.runs.items()
            for run in runs
            for record in [table.read_agent(run)]
        ]
        grid = pd.DataFrame(rows, columns=["method", "oversight", "seed", "run", "finished"])
        return tidy(grid, ("method", "oversight", "seed"))

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs. None: no run is finished.

        Args:
            failed: the reason for each run that failed, which the summary is to name.

        Raises:
            RunError: for a directory that holds no run.
        """
        failed = dict(failed or {})
        rows, timings, found = [], [], {}
        for method, runs in self.runs.items():
            for run in map(expanded, runs):
                if run in failed:
                    continue
                if not is_finished(run):
                    if run.is_dir():
                        table.read_agent(run)  # refuses the directory of a study
                    continue
                try:
                    rows += table.run_rows(method, run)
                    timings.append(table.run_timing(method, run))
                    found[run] = (method, timings[-1]["oversight"])
                except (ValueError, KeyError, IndexError, OSError, RunError) as error:
                    failed[run] = f"its files are damaged: {error}"
        if not rows:
            return None
        frame = tidy(rows, table.KEYS)
        columns = [name.removeprefix("outcomes.") for name in frame if name.startswith("outcomes.")]
        outcomes = [name for name in columns if name != "none"]
        if self.wanted not in outcomes:
            raise ValueError(
                f"wanted must be the outcome to steer to, one of {', '.join(outcomes)}, got {self.wanted!r}"
                f"{', its default' if self.wanted == OversightReport.wanted else ''}"
            )
        focus = self.focus
        if focus is None:
            focus = min(frame.oversight.unique(), key=lambda level: abs(level - USUAL_FOCUS))
        noise = table.noise_rows(frame, focus)
        reasons = {f"{run.parent.name}/{run.name}": reason for run, reason in failed.items()}
        text = table.summary(frame, focus, self.wanted, reasons, self.limits)
        text += table.noise_summary(noise, self.wanted) if len(noise) else ""
        drawn, charts = self._figures(frame, noise, focus, found)
        return Findings(frame, tidy(timings, table.KEYS), table.KEYS, text, drawn, table.MEANINGS, failed, charts)

    def _figures(
        self, frame: pd.DataFrame, noise: pd.DataFrame, focus: float, found: Mapping[Path, tuple[str, float]]
    ) -> tuple[dict[str, Callable[[], Figure]], dict[str, Callable[[], Chart]]]:
        """What draws each figure, and what makes each interactive chart."""
        methods = list(self.runs) if self.methods is None else list(self.methods)
        clean = frame[~frame.method.map(lambda method: NOISE.fullmatch(method) is not None)]
        main = frame[frame.method.isin(methods)]
        shown = table.compared(clean[clean.oversight == focus], self.wanted)
        curves = {
            (str(method), str(policy)): [run for run, of in found.items() if of == (method, focus)]
            for method, policy in shown[["method", "policy"]].drop_duplicates().itertuples(index=False)
            # Sharpened policies are evaluated only at the end. The curve of early stopping is that of naive.
            if method in methods and not policy.startswith("sharpened") and method != EARLY_STOPPED
        }
        look = looks(self.runs)
        drawn: dict[str, tuple[int, Callable[[], Figure]]] = {
            "returns": (
                len(table.compared(main, self.wanted)),
                lambda: draw_returns(main, self.wanted, self.limits, look),
            ),
            "methods": (len(shown), lambda: draw_bars(clean, self.wanted, focus, self.limits, look)),
            "curves": (len(curves), lambda: draw_curves(curves, focus, self.limits, look)),
            "noise": (len(noise), lambda: draw_noise(noise, self.wanted, focus)),
        }
        charts: dict[str, Callable[[], Chart]] = {"returns": lambda: returns_chart(main, self.wanted, look)}
        if curves:
            charts["curves"] = lambda: curves_chart(curves, focus, look)
        return {name: draw for name, (count, draw) in drawn.items() if count}, charts
