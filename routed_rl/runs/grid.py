"""Many runs at once: each in a fresh process of its own, which is seen through its run directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from routed_rl.errors import ERROR, user_input
from routed_rl.runs import RunError, check_run, read_json, read_metrics, run_commands
from routed_rl.runs.lock import is_locked
from routed_rl.runs.process import cuda_devices
from routed_rl.runs.progress import progress_display

RESULT = "evaluation.json"
STAGES = "stages"
"""Folder of runs that go on from each other, in the directory of their study."""
PAUSE = 60.0
"""Seconds after which a log says again how far runs are."""
FAILED = "routed-rl: failed: "
"""How a process that does several runs begins the line about one that failed."""
Backend = Callable[..., list[int | None]]
"""Runs commands as :func:`routed_rl.runs.run_commands` does."""


@dataclass(frozen=True)
class Kind:
    """What all runs of a grid are. A run is a command's options, with a ``seed``, ``force``, and its own ``out``."""

    config: Callable[[Any], dict[str, Any]]
    """what, with the seed, a run depends on"""
    command: Callable[[Sequence[Any]], list[str]]
    """the command line of a process for some runs"""
    total: Callable[[Any], int]
    """how far a run goes"""
    counter: str
    """the column of its metrics that says how far it is"""
    unit: str = "steps"
    """what is counted there"""
    batches: Callable[[list[Any]], list[list[Any]]] = lambda runs: [[run] for run in runs]
    """which runs share a process"""
    after: Callable[[Any], Collection[Path]] = lambda run: ()
    """the directories of the runs from which a run goes on"""


def run_all(runs: Sequence[Any], kind: Kind, workers: int, backend: Backend = run_commands) -> dict[Path, str]:
    """Do every run that is not finished, showing how far they are.

    A failed run, or one that finds another run in its place, stops none but those that go on from it, which are not
    begun. A run's log goes beside it.

    Args:
        workers: processes at once.

    Returns:
        Why runs failed, by their directory: the last line of each log.
    """
    failed, todo = {}, {}
    for run in runs:
        try:
            if not run.force:
                check_run(run.out, kind.config(run), run.seed)
            if run.force or not is_finished(run.out):
                run.out.parent.mkdir(parents=True, exist_ok=True)
                todo[run.out] = run
        except (RunError, OSError) as error:
            failed[run.out] = str(error)

    def is_there(out: Path) -> bool:
        return out in todo or (out not in failed and is_finished(out))

    while orphans := [run.out for run in todo.values() if not all(map(is_there, kind.after(run)))]:
        for out in orphans:
            del todo[out]
    batches = kind.batches(list(todo.values()))
    batch_of = {run.out: i for i, batch in enumerate(batches) for run in batch}
    before = [{p for run in batch for p in kind.after(run)} for batch in batches]
    after = [{batch_of[p] for p in of if p in batch_of} - {i} for i, of in enumerate(before)]
    logs = [batch[0].out.with_name(f"{batch[0].out.name}.log") for batch in batches]
    for out in todo:
        out.with_name(f"{out.name}.log").unlink(missing_ok=True)  # what it says is of an earlier attempt
    running = workers * max((len(batch) for batch in batches), default=1)
    with _progress(runs, todo, kind, running) as poll:
        commands = [kind.command(batch) for batch in batches]
        codes = backend(commands, workers, logs, after=after, on_poll=poll, poll_seconds=0.5)
    for batch, log, code in zip(batches, logs, codes, strict=True):
        if code:
            lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            left = (
                {run.out: run for run in batch if not is_finished(run.out)}
                if len(batch) > 1
                else {batch[0].out: batch[0]}
            )
            for out in (out for out, run in left.items() if not left.keys() & kind.after(run)):
                mark = f"{FAILED}{os.path.realpath(out)}: "
                own = [line.partition(mark)[2] for line in lines if mark in line]
                said = [line for line in lines if line.startswith(ERROR)]  # other processes may end after it
                last = (own or said or lines or ["no output"])[-1].removeprefix(ERROR)
                failed[out] = f"{last} (exit status {code}; log: {log})"
    return failed


def is_finished(out: Path) -> bool:
    """Whether the run there has its result; one that cannot be read is as good as none.

    A run whose name ends in ``.json`` is this file alone.
    """
    try:
        read_json(out if out.suffix == ".json" else out / RESULT)
    except (OSError, ValueError):
        return False
    return True


def called(runs: Iterable[Path]) -> str:
    """Return what a user calls these runs: "stages" if they are in a folder of this name, else "runs"."""
    return STAGES if all(run.parent.name == STAGES for run in runs) else "runs"


def options(given: Any, usual: Any, prefix: str = "") -> Iterator[str]:
    """The command line of what differs from the usual options."""
    for field in fields(given):
        name, value = prefix + field.name.replace("_", "-"), getattr(given, field.name)
        if value == getattr(usual, field.name):
            continue
        if is_dataclass(value):
            yield from options(value, getattr(usual, field.name), f"{name}.")
        elif isinstance(value, bool):
            yield f"--{name}" if value else f"--{prefix}no-{name.removeprefix(prefix)}"
        elif isinstance(value, tuple) and len(value) == 1 and str(value[0]).startswith("-"):
            yield f"--{name}={value[0]}"  # which is no option
        elif isinstance(value, tuple):
            yield from (f"--{name}", *map(str, value))
        elif str(value).startswith("-"):
            yield f"--{name}={value}"
        else:
            yield from (f"--{name}", str(value))


@contextmanager
def open_backend(
    name: str, address: str | None, workers: int, out: Path, needed: bool, device: str, together: int = 1
) -> Iterator[Backend]:
    """What runs commands: this machine, or a Ray cluster; UserError if there is no cluster where one is needed.

    Args:
        device: what each command computes on: if that is "cuda", Ray gives it GPUs of its own.
        together: processes of a command. Each has a GPU.
    """
    if name == "local" or not needed:
        devices = cuda_devices(together)
        yield partial(run_commands, devices=devices) if devices else run_commands
        return
    from routed_rl.runs.ray import ray_pool

    with ExitStack() as stack:
        with user_input():
            out.mkdir(parents=True, exist_ok=True)
            pool = stack.enter_context(ray_pool(address, workers, out, gpus=together if device == "cuda" else 0))
        yield pool


@contextmanager
def _progress(runs: Sequence[Any], todo: Mapping[Path, Any], kind: Kind, workers: int) -> Iterator[Callable[[], None]]:
    with progress_display(unit=kind.unit) as progress:
        total = {run.out: kind.total(run) for run in runs}
        task, them = progress.add_task("", total=sum(total.values())), called(total)
        said, when = sum((out / RESULT).exists() for out in total), monotonic()

        def poll() -> None:
            nonlocal said, when
            done = {out: _steps_done(out, total[out], kind.counter, out in todo) for out in total}
            finished = sum((out / RESULT).exists() for out in total)
            # Directories of runs that were interrupted wait among those that run.
            running = min(workers, sum(out.exists() and not (out / RESULT).exists() for out in todo))
            left = len(runs) - finished - running
            what = f"{finished} of {len(runs)} {them} done, {running} running, {left} left"
            progress.update(task, description=what, completed=sum(done.values()))
            said = min(said, finished)  # with --force, results go away first
            # In a log, lines take the place of a bar: one for each change, and one a minute.
            if progress.disable and (finished > said or monotonic() - when >= PAUSE):
                said, when = finished, monotonic()
                print(what + _now({out: (done[out], total[out]) for out in todo}, kind.unit), file=sys.stderr)

        yield poll


def _now(steps: Mapping[Path, tuple[float, int]], unit: str) -> str:
    """Say which runs are in progress on this machine, and how far they are. Three are named."""
    now = {out: of for out, of in steps.items() if not (out / RESULT).exists() and is_locked(out)}
    named = [
        f"{out.parent.name}/{out.name}" + (f" ({done:,.0f} of {total:,} {unit})" if done else "")
        for out, (done, total) in now.items()
    ]
    more = [f"{len(named) - 3} more"] if len(named) > 3 else []
    return f"; now {', '.join(named[:3] + more)}" if named else ""


def _steps_done(run: Path, total: int, counter: str, may_be_running: bool) -> float:
    if not may_be_running or (run / RESULT).exists():
        return total
    try:
        rows = read_metrics(run / "metrics.csv")
    except (OSError, ValueError):
        return 0.0  # not there yet, or just being cut back to a checkpoint
    return min(float(rows[-1][counter]), total) if rows else 0.0
