"""Many runs at once: each is the train command in a fresh process of its own, seen through its run directory."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.commands import PRESETS, Learner, Train
from experiments.errors import UserError, user_input
from experiments.progress import progress_display
from routed_rl.runs import RunError, check_run, config_hash, read_json, read_metrics, run_commands

RESULT = "evaluation.json"
FAILED = "routed-rl: failed: "
"""How a process that trains several runs begins the line about one that failed."""
Backend = Callable[..., list[int]]
"""Runs commands as :func:`routed_rl.runs.run_commands` does."""


def train_all(
    runs: Sequence[Train], workers: int, backend: Backend = run_commands, parallel_seeds: int = 1
) -> dict[Path, str]:
    """Train every run that is not finished, showing how far they are.

    A failed run, or one that finds another run in its place, does not stop the others.

    Args:
        runs: each with its own ``out``; the log goes beside it.
        workers: processes at once.
        parallel_seeds: how many runs, alike but for seed and oversight, a process trains at once.

    Returns:
        Why runs failed, by their directory: the last line of each log.
    """
    failed, todo = {}, {}
    for run in runs:
        try:
            if not run.force:
                check_run(_out(run), run.config(), run.seed)
            if run.force or not is_finished(_out(run)):
                _out(run).parent.mkdir(parents=True, exist_ok=True)
                todo[_out(run)] = run
        except (RunError, OSError) as error:
            failed[_out(run)] = str(error)
    batches = _batches(list(todo.values()), parallel_seeds)
    logs = [_out(batch[0]).with_name(f"{_out(batch[0]).name}.log") for batch in batches]
    for out in todo:
        out.with_name(f"{out.name}.log").unlink(missing_ok=True)  # what it says is of an earlier attempt
    with _progress(runs, todo, workers * parallel_seeds) as poll:
        codes = backend([_command(batch) for batch in batches], workers, logs, on_poll=poll, poll_seconds=0.5)
    for batch, log, code in zip(batches, logs, codes, strict=True):
        if code:
            lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            left = [_out(run) for run in batch if not is_finished(_out(run))] if len(batch) > 1 else [_out(batch[0])]
            for out in left:
                mark = f"{FAILED}{os.path.realpath(out)}: "
                own = [line.partition(mark)[2] for line in lines if mark in line]
                last = (own or lines or ["no output"])[-1].removeprefix("routed-rl: error: ")
                failed[out] = f"{last} (exit status {code}; log: {log})"
    return failed


def _batches(runs: Sequence[Train], size: int) -> list[list[Train]]:
    """Runs in groups that one process can train at once: as many, alike but for seed, oversight and label noise."""
    from experiments.gridworld import budget

    free = {"oversight": 0.1, "miss_rate": 0.0, "flip_rate": 0.0, "hard_first": False}
    alike: dict[tuple[str, int], list[Train]] = {}
    for run in runs:
        alike.setdefault((config_hash({**run.config(), **free}), budget(run.config())), []).append(run)
    return [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]


def check_options(runs: Sequence[Train], parallel_seeds: int = 1) -> None:
    """UserError for an option that no run can have, before any starts."""
    from experiments.gridworld import ON_MINIGRID, make_model

    for run in runs:
        if parallel_seeds > 1 and run.world in ON_MINIGRID:
            raise UserError(f"--parallel-seeds needs a batched world, not --world {run.world}")
        if parallel_seeds > 1 and run.learner.unfinished == "hold":
            raise UserError("--parallel-seeds needs batches of one size: leave out --learner.unfinished hold")
    with user_input():
        for run in {config_hash(run.config()): run for run in runs}.values():
            make_model(run.config(), run.seed)


def is_finished(out: Path) -> bool:
    """Whether the run there has its result; one that cannot be read is as good as none."""
    try:
        read_json(out / RESULT)
    except (OSError, ValueError):
        return False
    return True


def arguments(run: Train) -> list[str]:
    """The run's command line: what differs from its preset."""
    preset = PRESETS[run.preset]
    return ["train", "--preset", run.preset, *_options(run, preset), *_options(run.learner, preset.learner, "learner.")]


def _command(batch: Sequence[Train]) -> list[str]:
    # -P: a folder of the user's that is called experiments, in the working directory, is not ours.
    python = [sys.executable, "-P", "-m"]
    if len(batch) == 1:
        return [*python, "experiments.cli", *arguments(batch[0])]
    return [*python, "experiments.parallel", *(shlex.join(arguments(run)) for run in batch)]


def _options(given: Any, usual: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(given):
        name, value = prefix + field.name.replace("_", "-"), getattr(given, field.name)
        if value == getattr(usual, field.name) or isinstance(value, Learner):
            continue
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--{prefix}no-{name.removeprefix(prefix)}"
        else:
            yield f"--{name}"
            yield from map(str, value if isinstance(value, tuple) else (value,))


def _out(run: Train) -> Path:
    assert run.out is not None
    return run.out


@contextmanager
def _progress(runs: Sequence[Train], todo: Mapping[Path, Train], workers: int) -> Iterator[Callable[[], None]]:
    from experiments.gridworld import budget

    with progress_display(disable=not sys.stderr.isatty()) as progress:
        total = {_out(run): budget(run.config()) for run in runs}
        task = progress.add_task("", total=sum(total.values()))

        def poll() -> None:
            done = {out: _steps_done(out, total[out], out in todo) for out in total}
            finished = sum((out / RESULT).exists() for out in total)
            # Directories of runs that were interrupted wait among those that run.
            running = min(workers, sum(out.exists() and not (out / RESULT).exists() for out in todo))
            left = len(runs) - finished - running
            what = f"{finished} of {len(runs)} runs done, {running} running, {left} left"
            progress.update(task, description=what, completed=sum(done.values()))

        yield poll


def _steps_done(run: Path, total: int, may_be_running: bool) -> float:
    if not may_be_running or (run / RESULT).exists():
        return total
    try:
        rows = read_metrics(run / "metrics.csv")
    except (OSError, ValueError):
        return 0.0  # not there yet, or just being cut back to a checkpoint
    return min(float(rows[-1]["env_steps"]), total) if rows else 0.0
