"""Studies: many runs that share a directory, a table and figures."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.paths import expanded
from routed_rl.runs import read_json, write_bytes, write_json
from routed_rl.runs.charts import Chart, write_charts
from routed_rl.runs.figures import png, title
from routed_rl.runs.files import StrPath, plain_json
from routed_rl.runs.grid import Kind, is_finished, open_backend, run_all
from routed_rl.runs.lock import locked
from routed_rl.runs.page import study_page
from routed_rl.runs.process import check_device, usual_workers
from routed_rl.runs.record import LOCK
from routed_rl.runs.tables import described, write_table
from routed_rl.wording import again, did_you_mean, option_names, spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY = "study.json"
RESULTS, TIMINGS, SUMMARY, COLUMNS = "results.csv", "timings.csv", "summary.md", "results.columns.md"
LEADERBOARD, LEADERBOARD_PAGE = "leaderboard.md", "leaderboard.html"
"""What the summary and the page of a study are called where they rank models."""
REPORT, CHARTS, PLANNED = "report.html", "charts.json", "planned.json"


class RunsFailedError(UserError):
    """Some runs of a study failed. The others are finished, and are in its table.

    Attributes:
        failed: the reason for each failed run, by its directory.
        written: whether there are results, so that the tables in the study's directory are of this start.
    """

    def __init__(self, message: str, failed: Mapping[Path, str], written: bool) -> None:
        super().__init__(message)
        self.written = written
        self.failed = {out: spoken(reason) for out, reason in failed.items()}


@dataclass
class Findings:
    """The results of the finished runs of a study.

    Attributes:
        results: a row per model, tidy, as in ``results.csv``.
        timings: seconds per run, as in ``timings.csv``.
        keys: the columns by which both tables are sorted.
        summary: the study in Markdown.
        figures: what draws each figure, by name. Figures for which no run is there are left out.
        meanings: of the columns of ``results``, as for :func:`~routed_rl.runs.tables.described`.
        failed: the reason for each run that failed or whose files are not sound, by its directory.
        charts: what makes each interactive chart, by name.
        files: the content of further files that are written beside the table, by name.
        pictures: what draws further figures, by name; returns the title and the PNG file.
    """

    results: pd.DataFrame
    timings: pd.DataFrame
    keys: Sequence[str]
    summary: str
    figures: Mapping[str, Callable[[], Figure]]
    meanings: Mapping[str, str]
    failed: dict[Path, str] = field(default_factory=dict)
    charts: Mapping[str, Callable[[], Chart]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, Callable[[], tuple[str, bytes]]] = field(default_factory=dict)


class Reported(ABC):
    """What there is to say of runs: a table, a summary, figures and a page."""

    TITLE: ClassVar[str]
    """title of the page"""
    FIGURES: ClassVar[tuple[str, ...]]
    """names of all figures that there may be"""

    @abstractmethod
    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs. None: no run is finished.

        Args:
            failed: the reason for each run that failed.
        """

    def results(self) -> pd.DataFrame:
        """Return the table of all finished runs: a row per model, as in ``results.csv``.

        Raises:
            ValueError: if no run is finished.
        """
        return self._found().results

    def summary(self) -> str:
        """Return the study in Markdown, as in ``summary.md``; ValueError if no run is finished."""
        return self._found().summary

    def columns(self) -> dict[str, str]:
        """Return what each column of :meth:`results` means, as in ``results.columns.md``.

        Raises:
            ValueError: if no run is finished.
        """
        found = self._found()
        return described(found.results, found.meanings)

    def figure(self, name: str) -> Figure:
        """Return one of :attr:`FIGURES`.

        Raises:
            ValueError: for another name, or if the runs that the figure shows are not there.
        """
        if name not in self.FIGURES:
            raise ValueError(f"there is no figure {name!r}; the figures are {', '.join(self.FIGURES)}")
        found = self._found()
        if name not in found.figures:
            raise ValueError(f"no finished run is shown in {name!r}; there are {', '.join(found.figures)}")
        return found.figures[name]()

    def page(self) -> str:
        """Return an HTML page with all of this, as in ``report.html``: charts answer the mouse, tables can be sorted.

        It needs no other file and no network.

        Raises:
            ValueError: if no run is finished.
        """
        found = self._found()
        return self._page(found, [draw() for draw in found.charts.values()], [*self._pictures(found).values()])

    def _pictures(self, found: Findings) -> dict[str, tuple[str, bytes]]:
        """Return the title and the PNG file of each figure, by name."""
        made = {}
        for name in self.FIGURES:
            if name in found.figures:
                figure = found.figures[name]()
                made[name] = title(figure), png(figure)
            elif name in found.pictures:
                made[name] = found.pictures[name]()
        return made

    def _page(self, found: Findings, charts: Sequence[Chart], figures: Sequence[tuple[str, bytes]]) -> str:
        meanings = described(found.results, found.meanings)
        return study_page(self.TITLE, self._options(), found.summary, charts, figures, meanings)

    def _options(self) -> Mapping[str, Any]:
        """The options that all runs share, for the page."""
        return {}

    def _found(self) -> Findings:
        found = self.find()
        if found is None:
            raise ValueError("no run is finished")
        return found


class StudyDirectory(Reported):
    """The directory of a study: which runs it has, and what there is to say of them."""

    SUMMARY: ClassVar[str] = SUMMARY
    """name of the file with the summary"""
    REPORT: ClassVar[str] = REPORT
    """name of the file with the page"""
    FILES: ClassVar[tuple[str, ...]] = ()
    """names of further files that the study may write"""
    out: Path

    @abstractmethod
    def _identity(self) -> Mapping[str, Any]:
        """What all runs in the directory share."""

    def _write(self, found: Findings) -> None:
        write_table(found.results, self.out / RESULTS, found.keys)
        write_table(found.timings, self.out / TIMINGS, found.keys)
        write_bytes(self.out / self.SUMMARY, found.summary.encode())
        for name in self.FILES:
            (self.out / name).unlink(missing_ok=True)  # an earlier start may have had what this one has not
        for name, text in found.files.items():
            write_bytes(self.out / name, text.encode())
        explained = described(found.results, found.meanings)
        rows = [[f"`{column}`", meaning] for column, meaning in explained.items()]
        header = f"# Columns of `{RESULTS}`\n\n| column | meaning |\n| --- | --- |\n"
        write_bytes(self.out / COLUMNS, (header + "".join(f"| {a} | {b} |\n" for a, b in rows)).encode())
        for name in self.FIGURES:
            (self.out / f"{name}.png").unlink(missing_ok=True)  # an earlier start may have had other models
        pictures = self._pictures(found)
        for name, (_, drawn) in pictures.items():
            write_bytes(self.out / f"{name}.png", drawn)
        charts = {name: draw() for name, draw in found.charts.items()}
        write_charts(charts, self.out / CHARTS)
        write_bytes(self.out / self.REPORT, self._page(found, [*charts.values()], [*pictures.values()]).encode())

    def _options(self) -> Mapping[str, Any]:
        return self._identity()

    def _note(self, runs: Iterable[Path]) -> None:
        """Note which runs the study has, so that others can tell how far it is.

        A run is a directory, or the file with its result if its name ends in ``.json``. Runs of
        earlier starts count if they are finished: the others are no longer asked for.
        """
        with user_input():
            known = [name for name in planned(self.out) if is_finished(self.out / name)]
        names = {run.relative_to(self.out).as_posix() for run in runs}
        write_json(self.out / PLANNED, {"runs": sorted(names.union(known))})


class Study(StudyDirectory):
    """Many runs in one directory, with a table and figures. Subclasses are dataclasses of options.

    A study goes on where it stopped: finished runs are not done again. The same options give the same directory and
    the same bytes, whether a command or Python starts them.
    """

    KIND: Kind
    """what one run is: its process, and how its progress is counted"""
    device: str
    processes = 1
    """number of processes of each run"""

    @abstractmethod
    def plan(self) -> pd.DataFrame:
        """Return what :meth:`run` would do: a row per run, with the reason. Nothing is run."""

    @abstractmethod
    def _prepare(self, here: bool) -> Sequence[Any]:
        """Check all options and return the runs, for :attr:`KIND`.

        Args:
            here: whether runs are processes on this machine.

        Raises:
            ValueError, OSError: for what the user has to change.
        """

    @abstractmethod
    def _failure(self, failed: Mapping[Path, str], runs: Sequence[Any]) -> str:
        """One sentence that counts the failed runs."""

    def run(
        self,
        out: StrPath | None = None,
        workers: int | None = None,
        backend: Literal["local", "ray"] = "local",
        ray_address: str | None = None,
    ) -> pd.DataFrame:
        """Do every run that is not finished, write tables and figures, and return :meth:`results`.

        Each run is a process of its own. Interrupted, the study goes on where it stopped when it is run again.

        Args:
            out: the study's directory from now on; None: :attr:`out`.
            workers: processes at once, one thread each; None: 2, or one per GPU.
            backend: "local", processes on this machine; or "ray", tasks of a Ray cluster.
            ray_address: address of a running Ray cluster; None: start Ray on this machine.

        Raises:
            UserError: for options, a model or texts that the study cannot use, or if another process runs a study in
                this directory, before anything is run.
            RunsFailedError: if a run failed. All others have been done.
            KeyboardInterrupt: for Ctrl-C, after all runs were stopped.
        """
        try:
            return self._run(out, workers, backend, ray_address)
        except KeyboardInterrupt:  # without the lines of the pool, in which it waited
            raise KeyboardInterrupt(f"the study in {self.out} is stopped; {again()} to continue it") from None

    def _run(self, out: StrPath | None, workers: int | None, backend: str, ray_address: str | None) -> pd.DataFrame:
        if out is not None:
            # Options are frozen. The directory of the runs is not.
            object.__setattr__(self, "out", Path(os.path.abspath(expanded(out))))
        if workers is not None:
            at_least(1, workers=workers)
        if backend not in ("local", "ray"):
            raise UserError(f"backend must be 'local' or 'ray', got {backend!r}")
        with user_input():
            if backend == "local":
                check_device(self.device, self.processes)
            runs = self._prepare(backend == "local")
            identity = self._identity()
            check_study(self.out, identity)
        needed = not all(is_finished(run.out) for run in runs)
        device = self.device, self.processes
        workers = workers or usual_workers(*device)
        with (
            open_backend(backend, ray_address, workers, self.out, needed, *device) as opened,
            started_study(self.out, identity),
        ):
            self._note(run.out for run in runs)
            failed = run_all(runs, self.KIND, workers, opened)
            with user_input():
                found = self.find(failed)
                if found is not None:
                    self._write(found)
                    failed = found.failed
        if failed:
            raise RunsFailedError(self._failure(failed, runs), failed, found is not None)
        assert found is not None
        return found.results


def progress(out: Path) -> tuple[int, int]:
    """Return how many runs of the study in a directory are finished, and how many it has. Errors: :func:`planned`."""
    names = planned(out)
    return sum(is_finished(out / name) for name in names), len(names)


def planned(out: Path) -> list[str]:
    """Return the directories of a study's runs, below its own; none if the study does not say.

    Raises:
        ValueError: if the file that names them is damaged.
    """
    if not (out / PLANNED).exists():
        return []
    found = read_json(out / PLANNED)
    if not isinstance(found, dict) or not isinstance(found.get("runs"), list):
        raise ValueError(f"{str(out / PLANNED)!r} names no runs; delete this file")
    return [str(name) for name in found["runs"]]


def check_study(out: Path, identity: Mapping[str, Any]) -> None:
    """ValueError unless the study of this identity may be started in the directory, or gone on with."""
    if (out / STUDY).exists():
        found = read_json(out / STUDY)
        if not isinstance(found, dict):
            raise ValueError(f"{str(out / STUDY)!r} says nothing of a study; name another --out")
        there = {"device": "cpu", **found}  # older ones do not say so
        here = plain_json(identity, "study")
        if other := sorted(name for name in {*there, *here} if there.get(name) != here.get(name)):
            if other == ["code"]:
                old, new = there.get("code", {}), here.get("code", {})
                changed = ", ".join(sorted(name for name in {*old, *new} if old.get(name) != new.get(name)))
                raise ValueError(f"{str(out)!r} has results of other code, {changed} has changed; name another --out")
            of = [{name: study[name] for name in other if name in study} for study in (there, here)]
            raise ValueError(f"{str(out)!r} holds another study, of {of[0]}, not of {of[1]}; name another --out")
    elif out.exists() and (not out.is_dir() or any(entry.name != LOCK for entry in out.iterdir())):
        raise ValueError(f"{str(out)!r} is not empty and holds no study; name another --out")


def refuse_unknown(options: type, given: Iterable[str], names: Iterable[str]) -> None:
    """Raise a TypeError for the first name in ``given`` that is no option of a study. ``names`` are its options."""
    names = list(names)
    for name in sorted({*given} - {*names}):
        if name in signature(Study.run).parameters:
            raise TypeError(
                f"{name!r} is no option of the study but an argument of its run(), as in study.run({name}=…)"
            )
        nearest = did_you_mean(name, option_names(options))
        raise TypeError(f"there is no option {name!r}; the options are {', '.join(names)}{nearest}")


@contextmanager
def started_study(out: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, work in the directory as the study of this identity. No other process can.

    Raises:
        UserError: as :func:`check_study`, or if another process works there, or the directory cannot be written.
    """
    with ExitStack() as stack:
        with user_input():
            check_study(out, identity)
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out, "study"))
            check_study(out, identity)  # again, because another process may have started a study here meanwhile
            if not (out / STUDY).exists():
                write_json(out / STUDY, identity)
        yield
