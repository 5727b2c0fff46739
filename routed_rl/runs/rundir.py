"""Run directories: a run can be killed and continued at any moment, and always ends with the same bytes.

    config.json        configuration, its hash, and the seed
    versions.json      versions of Python and packages, and the git commit, at the start of the run
    metrics.csv        rows that depend only on configuration and seed
    timings.csv        rows that may differ between two runs (seconds, memory)
    checkpoints/       the newest two checkpoints; removed when the run is finished
    evaluation.json    the result; it exists exactly when the run is finished
    .lock              empty; the process that works here, or a fork of it, holds a `flock` on this file (POSIX)

A SIGKILL at any moment does no harm, for these reasons:

- Every file except the two CSVs is written elsewhere and renamed, so it is complete as soon as it exists.
- Loading a checkpoint cuts off the rows that were written after it.
- `config.json` is written first: without it the directory counts as empty. The result is written last: without it the
  run counts as unfinished, and after it only `checkpoints/` must be removed.
- Opening the directory completes interrupted work: it removes temporary files, finishes replacements, and removes the
  checkpoints of a finished run. The next `save_checkpoint` removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routed_rl.paths import expanded
from routed_rl.runs.checkpoint import Checkpoint, CheckpointError, read_checkpoint, sweep, write_checkpoint
from routed_rl.runs.files import JSON, StrPath, plain_json, read_json, remove, sync, write_json
from routed_rl.runs.lock import locked
from routed_rl.runs.metrics import MetricsCSV
from routed_rl.runs.record import CONFIG, RunError, RunRecord, find_run, refuse_other, versions

if TYPE_CHECKING:
    import torch

VERSIONS, METRICS, TIMINGS, CHECKPOINTS = "versions.json", "metrics.csv", "timings.csv", "checkpoints"
RESULT = "evaluation.json"


@dataclass(frozen=True)
class RunCheckpoint:
    """The state from which a run continues: the `step`, `tensors` and `meta` given to `save_checkpoint`."""

    step: int
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


class RunDirectory:
    """A run in its directory, locked against other processes; use `RunDirectory.open`::

        with RunDirectory.open(path, config, seed) as run:
            if not run.finished:
                checkpoint = run.load_checkpoint()   # None: start from the beginning
                ...                                  # run.metrics.append, run.save_checkpoint
                write_checkpoint(run.path / "model", ...)
                run.finish(result)
            print(run.result)

    Attributes: `path`, `record` (configuration, its hash, seed), `result` (None until finished).
    """

    def __init__(self, path: StrPath, record: RunRecord, result_name: str) -> None:
        self.path = path = expanded(path)
        self.record = record
        self.result: dict[str, Any] | None = None
        self._result_path = path / result_name
        self._checkpoints = path / CHECKPOINTS
        self._kept: list[str] = []  # names of the checkpoints known to be good, oldest first
        self._logs: tuple[MetricsCSV, MetricsCSV] | None = None
        self._resources = contextlib.ExitStack()

    @classmethod
    def open(
        cls,
        path: StrPath,
        config: Mapping[str, JSON],
        seed: int,
        *,
        force: bool = False,
        result_name: str = RESULT,
    ) -> RunDirectory:
        """Return the run at `path`: a new run, an unfinished run to continue, or a finished one (see `finished`).

        A run is finished when it has the file `result_name`. With `force`, an existing run of any kind is first renamed
        to `<path>.old-<n>`.

        Raises RunError, in one line, if `path` holds another run, is not a run, is in use by another process, or cannot
        be written. Raises TypeError or ValueError if JSON cannot hold the configuration, or the seed is not an integer.
        After an error, existing files are unchanged.
        """
        record = RunRecord.of(config, seed)
        path = Path(os.path.realpath(expanded(path)))
        try:
            if force:
                _set_aside(path)
            find_run(path)  # raises for a directory that is not a run, before anything is written to it
            path.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as resources:
                resources.enter_context(locked(path, "run"))
                run = cls(path, record, result_name)
                run._prepare()
                run._resources = resources.pop_all()
                return run
        except OSError as error:
            raise RunError(f"{str(path)!r} cannot be used for a run: {error.strerror}") from None

    @property
    def finished(self) -> bool:
        """Whether the run has its result, so that nothing is left to do."""
        return self.result is not None

    @property
    def metrics(self) -> MetricsCSV:
        """Rows that depend only on configuration and seed; raises RunError before `load_checkpoint`."""
        return self._open_logs()[0]

    @property
    def timings(self) -> MetricsCSV:
        """Rows that may differ between two runs (seconds, memory); raises RunError before `load_checkpoint`."""
        return self._open_logs()[1]

    def checkpoint_steps(self) -> list[int]:
        """Return the steps of all checkpoints, usable or not, in increasing order."""
        return sorted(_step(name) for name in self._saved())

    def load_checkpoint(self, at_most: int | None = None) -> RunCheckpoint | None:
        """Return the newest usable checkpoint; None to start from the beginning. Call it before all other methods.

        `metrics` and `timings` are cut back to the rows that they had when the checkpoint was saved. A checkpoint that
        cannot be used causes a warning, and stays until the next checkpoint is saved. With `at_most`, checkpoints of
        later steps are skipped; they are replaced when the run reaches these steps again. Raises RunError if the run is
        finished.
        """
        if self.finished:
            raise RunError(f"the run {str(self.path)!r} is finished: there is nothing to continue")
        if self._logs is None:
            self._logs = MetricsCSV(self.path / METRICS), MetricsCSV(self.path / TIMINGS)
            for log in self._logs:
                self._resources.callback(log.close)
        metrics, timings = self._logs
        for name in sorted(self._saved(), key=_step, reverse=True):
            if at_most is not None and _step(name) > at_most:
                continue
            try:
                checkpoint = self._read(name, metrics.rows)
            except CheckpointError as error:
                warnings.warn(f"{error}; the run continues from an earlier step", stacklevel=2)
                continue
            metrics.truncate(checkpoint.meta["metrics_rows"])
            timings.truncate(min(checkpoint.meta["timings_rows"], timings.rows))
            self._kept = [name]
            return RunCheckpoint(_step(name), checkpoint.tensors, checkpoint.meta["meta"])
        metrics.truncate(0)
        timings.truncate(0)
        return None

    def save_checkpoint(self, step: int, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, JSON]) -> None:
        """Save a checkpoint at `step`, with the number of rows so far; only the newest two checkpoints are kept.

        Raises ValueError if the step is negative or before the last one, and the errors of `write_checkpoint`.
        """
        metrics, timings = self._open_logs()
        last = _step(self._kept[-1]) if self._kept else 0
        if step < last:
            raise ValueError(f"the step of a checkpoint must be at least {last}, the step of the last one, got {step}")
        saved: dict[str, JSON] = {
            **self._identity(step),
            "metrics_rows": metrics.rows,
            "timings_rows": timings.rows,
            "meta": plain_json(meta, "meta"),
        }
        metrics.sync()
        timings.sync()
        self._checkpoints.mkdir(exist_ok=True)
        name = f"step-{step:012d}"
        if name not in self._kept:
            remove(self._checkpoints / name)  # load_checkpoint could not use this one
        write_checkpoint(self._checkpoints / name, tensors, saved)
        self._kept = [*[kept for kept in self._kept if kept != name][-1:], name]
        self._discard_all_but(self._kept)

    def finish(self, result: Mapping[str, JSON]) -> None:
        """Write the result; the run is finished then. All other files must be complete before.

        Raises TypeError or ValueError, with the key, for a result that JSON cannot hold.
        """
        for log in self._open_logs():
            log.sync()
        write_json(self._result_path, result)
        self.result = self._read_result()
        self._discard_all_but([])

    def close(self) -> None:
        """Close the files and release the lock; the end of the process does the same."""
        self._resources.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _prepare(self) -> None:
        """Complete interrupted work, so that the directory looks as if the run had never been killed."""
        stored = find_run(self.path)
        if stored is None:
            write_json(self.path / CONFIG, self.record.as_json())
        else:
            refuse_other(self.path, stored, self.record)
        sweep(self.path)
        self.result = self._read_result()
        if self.finished:
            self._discard_all_but([])
            return
        current = versions()
        if not (self.path / VERSIONS).exists():
            write_json(self.path / VERSIONS, current)
        elif changed := [k for k, v in read_json(self.path / VERSIONS).items() if v != current.get(k)]:
            warnings.warn(
                f"the run {str(self.path)!r} was started with another version of {' and '.join(changed)}; "
                "it continues, but its results may differ from an uninterrupted run",
                stacklevel=3,
            )

    def _read_result(self) -> dict[str, Any] | None:
        try:
            result = read_json(self._result_path)
            if not isinstance(result, dict):
                raise ValueError(f"{str(self._result_path)!r} is not a JSON object")
        except FileNotFoundError:
            return None
        except ValueError as error:
            warnings.warn(f"{error}; the run continues as if it were not finished", stacklevel=4)
            return None
        return result

    def _open_logs(self) -> tuple[MetricsCSV, MetricsCSV]:
        if self._logs is None:
            raise RunError(f"call load_checkpoint() of the run {str(self.path)!r} before you write to it")
        return self._logs

    def _identity(self, step: int) -> dict[str, JSON]:
        return {"config_hash": self.record.config_hash, "seed": self.record.seed, "step": step}

    def _saved(self) -> list[str]:
        entries = self._checkpoints.iterdir() if self._checkpoints.is_dir() else ()
        return [entry.name for entry in entries if re.fullmatch(r"step-\d{12,}", entry.name)]

    def _read(self, name: str, rows: int) -> Checkpoint:
        path = self._checkpoints / name
        checkpoint = read_checkpoint(path)
        if not self._identity(_step(name)).items() <= checkpoint.meta.items():
            raise CheckpointError(f"checkpoint {str(path)!r} cannot be used: another run saved it")
        if checkpoint.meta["metrics_rows"] > rows:
            raise CheckpointError(f"checkpoint {str(path)!r} cannot be used: {METRICS} has lost rows since then")
        return checkpoint

    def _discard_all_but(self, kept: Sequence[str]) -> None:
        if not self._checkpoints.is_dir():
            return
        for entry in list(self._checkpoints.iterdir()):
            if entry.name not in kept and re.match(r"\.?step-\d", entry.name):
                remove(entry)
        if not kept:
            with contextlib.suppress(OSError):  # not empty: a user put a file there, so leave it
                self._checkpoints.rmdir()


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _set_aside(path: Path) -> None:
    """Rename the run at `path`, if there is one, to the first unused `<path>.old-<n>`."""
    if find_run(path) is None:
        return
    with locked(path, "run"):
        names = (path.with_name(f"{path.name}.old-{n}") for n in itertools.count(1))
        path.rename(next(name for name in names if not os.path.lexists(name)))
    sync(path.parent)
