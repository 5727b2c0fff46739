"""A directory that is a run: started, killed, continued and finished there, always to the same bytes.

    config.json        configuration, its hash, and the seed
    versions.json      Python, packages and git commit it was started with
    metrics.csv        a function of configuration and seed
    timings.csv        what may differ from one run to the next
    checkpoints/       the newest two while the run is going; gone when it is finished
    evaluation.json    the result: there when, and only when, the run is finished
    .lock              empty; who holds a `flock` on it, or was forked while it was held, works here (POSIX)

Why a SIGKILL at any moment does no harm: every file but the two CSVs appears whole, by a rename. Rows
written after a checkpoint are cut off when it is loaded. `config.json` is first (before it the
directory counts as empty) and the result last (before it the run counts as unfinished, after it only
`checkpoints/` is left to be removed). Opening the directory completes what was interrupted: it removes
temporaries, finishes replacements, and removes a finished run's checkpoints. What a killed `save_checkpoint`
leaves goes with the next one.
"""

import contextlib
import fcntl
import itertools
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from routed_rl.runs.checkpoint import Checkpoint, CheckpointError, read_checkpoint, sweep, write_checkpoint
from routed_rl.runs.files import JSON, StrPath, plain_json, read_json, remove, sync, write_json
from routed_rl.runs.metrics import MetricsCSV
from routed_rl.runs.record import CONFIG, LOCK, RunError, RunRecord, find_run, refuse_other, versions

VERSIONS, METRICS, TIMINGS, CHECKPOINTS = "versions.json", "metrics.csv", "timings.csv", "checkpoints"
RESULT = "evaluation.json"


@dataclass(frozen=True)
class RunCheckpoint:
    """Where a run continues: the `step`, `tensors` and `meta` that were given to `save_checkpoint`."""

    step: int
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


class RunDirectory:
    """A run in its directory, locked against other processes; use `RunDirectory.open`.

        with RunDirectory.open(path, config, seed) as run:
            if not run.finished:
                checkpoint = run.load_checkpoint()   # None: start from the beginning
                ...                                  # run.metrics.append, run.save_checkpoint
                write_checkpoint(run.path / "model", ...)
                run.finish(result)
            print(run.result)

    Attributes: `path`, `record` (configuration, its hash, seed), `result` (None until finished).
    """

    def __init__(self, path: Path, record: RunRecord, result_name: str) -> None:
        self.path = path
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
    ) -> "RunDirectory":
        """Start the run at `path`, or reopen it: unfinished, to be continued, or `finished`.

        A run is finished when it has the file `result_name`. With `force` a run that is there, whichever
        it is, is first renamed to `<path>.old-<n>`.

        Raises RunError, in one line, if `path` holds another run or something that is not a run, is in
        use by another process, or cannot be written; TypeError or ValueError for a configuration that
        JSON cannot hold or a seed that is not an integer. What was there is then still there.
        """
        record = RunRecord.of(config, seed)
        path = Path(os.path.realpath(path))
        try:
            if force:
                _set_aside(path)
            find_run(path)  # refuses a directory that is not a run before anything is made in it
            path.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as resources:
                resources.enter_context(_locked(path))
                run = cls(path, record, result_name)
                run._prepare()
                run._resources = resources.pop_all()
                return run
        except OSError as error:
            raise RunError(f"{str(path)!r} cannot be used for a run: {error.strerror}") from None

    @property
    def finished(self) -> bool:
        """Whether the run has its result; nothing is left to do then."""
        return self.result is not None

    @property
    def metrics(self) -> MetricsCSV:
        """The rows that a function of configuration and seed gives; RunError before `load_checkpoint`."""
        return self._open_logs()[0]

    @property
    def timings(self) -> MetricsCSV:
        """The rows that may differ from run to run: seconds, memory; RunError before `load_checkpoint`."""
        return self._open_logs()[1]

    def checkpoint_steps(self) -> list[int]:
        """The steps of which there are checkpoints, good or not, in order."""
        return sorted(_step(name) for name in self._saved())

    def load_checkpoint(self, at_most: int | None = None) -> RunCheckpoint | None:
        """Return the newest good checkpoint, or None: start from the beginning. Call it before the rest.

        With `at_most`, those of later steps are passed over, and replaced when the run comes there again.

        `metrics` and `timings` are cut back to the rows that they had when it was saved. A checkpoint
        that cannot be used is reported by a warning and left where it is until the next one is saved.
        Raises RunError if the run is finished.
        """
        if self.finished:
            raise RunError(f"the run {str(self.path)!r} is finished, so there is nothing to continue")
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
                warnings.warn(f"{error}; the run continues from before it", stacklevel=2)
                continue
            metrics.truncate(checkpoint.meta["metrics_rows"])
            timings.truncate(min(checkpoint.meta["timings_rows"], timings.rows))
            self._kept = [name]
            return RunCheckpoint(_step(name), checkpoint.tensors, checkpoint.meta["meta"])
        metrics.truncate(0)
        timings.truncate(0)
        return None

    def save_checkpoint(self, step: int, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, JSON]) -> None:
        """Save where the run is at `step`, with the number of rows written so far; the newest two stay.

        Raises ValueError for a step that is negative or before the last; else as `write_checkpoint`.
        """
        metrics, timings = self._open_logs()
        last = _step(self._kept[-1]) if self._kept else 0
        if step < last:
            raise ValueError(f"a checkpoint of step {step} cannot follow that of step {last}")
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
            remove(self._checkpoints / name)  # one that load_checkpoint could not use
        write_checkpoint(self._checkpoints / name, tensors, saved)
        self._kept = [*[kept for kept in self._kept if kept != name][-1:], name]
        self._discard_all_but(self._kept)

    def finish(self, result: Mapping[str, JSON]) -> None:
        """Write the result, which makes the run finished; every other file must be complete by now.

        Raises TypeError or ValueError, naming the key, for a result that JSON cannot hold.
        """
        for log in self._open_logs():
            log.sync()
        write_json(self._result_path, result)
        self.result = self._read_result()
        self._discard_all_but([])

    def close(self) -> None:
        """Close the files and let go of the lock, as the end of the process would."""
        self._resources.close()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _prepare(self) -> None:
        """Bring the directory to where a run that was never killed would have it."""
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
                f"the run {str(self.path)!r} was started with another {' and '.join(changed)}; "
                "it continues, but perhaps not to the same bytes",
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
            raise RunError(f"load_checkpoint() of the run {str(self.path)!r} comes before writing to it")
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
            raise CheckpointError(f"checkpoint {str(path)!r} is refused: it was not saved by this run")
        if checkpoint.meta["metrics_rows"] > rows:
            raise CheckpointError(f"checkpoint {str(path)!r} is refused: {METRICS} has lost rows since")
        return checkpoint

    def _discard_all_but(self, kept: Sequence[str]) -> None:
        if not self._checkpoints.is_dir():
            return
        for entry in list(self._checkpoints.iterdir()):
            if entry.name not in kept and re.match(r"\.?step-\d", entry.name):
                remove(entry)
        if not kept:
            with contextlib.suppress(OSError):  # somebody put a file of their own there: leave it
                self._checkpoints.rmdir()


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the run at `path`; RunError if another process does. Death lets go of it."""
    with (path / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Someone who set the directory aside just now took the file we hold with it.
            if not os.path.samestat(os.fstat(lock.fileno()), (path / LOCK).stat()):
                raise BlockingIOError
        except BlockingIOError:
            raise RunError(f"the run {str(path)!r} is in use by another process") from None
        yield


def _set_aside(path: Path) -> None:
    """Rename the run at `path`, if there is one, to the first unused `<path>.old-<n>`."""
    if find_run(path) is None:
        return
    with _locked(path):
        names = (path.with_name(f"{path.name}.old-{n}") for n in itertools.count(1))
        path.rename(next(name for name in names if not os.path.lexists(name)))
    sync(path.parent)
