"""What lies in a folder of runs: which runs and studies, how far they are, and what came out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routed_rl.paths import expanded
from routed_rl.runs.files import StrPath, read_json
from routed_rl.runs.grid import RESULT, called, is_finished
from routed_rl.runs.lock import is_locked
from routed_rl.runs.metrics import read_metrics
from routed_rl.runs.record import CONFIG, RunError, RunRecord, find_run
from routed_rl.runs.studies import RESULTS, STUDY, planned, progress

if TYPE_CHECKING:
    import pandas as pd

DEPTH = 4
"""How many folders deep runs are looked for."""
COUNTERS = {"env_steps": "total_steps", "step": "steps"}
"""Columns of a run's metrics that count its steps, with the option that says how many there will be."""

Headline, StudyHeadline = Callable[[Mapping[str, Any]], str], Callable[[Path], str]
DAMAGED, UNREADABLE = ({"state": state, "progress": "", "result": ""} for state in ("damaged", "unreadable"))


def list_runs(
    folder: StrPath, headline: Headline = lambda result: "", study_headline: StudyHeadline = lambda folder: ""
) -> pd.DataFrame:
    """Return a row for each run and study below a folder. Runs that belong to a study are counted in its row.

    Args:
        folder: a directory of runs, as ``runs``.
        headline: what to say of a run's result, the content of its ``evaluation.json``.
        study_headline: what to say of the results of a study, from its directory.

    Returns:
        The columns ``path``, relative to the folder; ``kind``, "run", "study", or "folder" for one that cannot be read;
        ``state``, "finished", "running", "stopped", "damaged" or "unreadable"; ``progress``; ``result``; ``changed``,
        when something was last written there.

    Raises:
        RunError: if there is no such directory.
    """
    import pandas as pd

    root = expanded(folder)
    if not root.is_dir():
        raise RunError(f"there is no folder {str(root)!r}: name the one that holds your runs")
    rows = [
        {"path": os.path.relpath(path, root), "kind": kind, **about, "changed": _changed(path)}
        for path, kind, about in _found(root, headline, study_headline, DEPTH)
    ]
    return pd.DataFrame(rows, columns=["path", "kind", "state", "progress", "result", "changed"])


def _found(
    folder: Path, headline: Headline, study_headline: StudyHeadline, depth: int
) -> Iterator[tuple[Path, str, dict[str, str]]]:
    try:
        entries = sorted(folder.iterdir())
        names = {entry.name for entry in entries}
        record = find_run(folder) if CONFIG in names and STUDY not in names else None
        inside = [entry for entry in entries if not entry.is_symlink() and entry.is_dir()]
    except RunError:  # a folder of a language model has a file of this name too
        return
    except OSError:
        yield folder, "folder", UNREADABLE
        return
    if STUDY in names:
        yield folder, "study", _checked(lambda: _study(folder, study_headline))
    elif record is not None:
        yield folder, "run", _checked(lambda: _run(folder, record, headline))
    elif depth:
        for each in inside:
            if not each.name.startswith("."):
                yield from _found(each, headline, study_headline, depth - 1)


def _checked(tell: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return what there is to tell of a run or a study, also if its files are not as it writes them."""
    try:
        return tell()
    except OSError:
        return UNREADABLE
    except (ValueError, LookupError, TypeError, AttributeError):
        return DAMAGED


def _study(folder: Path, headline: StudyHeadline) -> dict[str, str]:
    done, count = progress(folder)
    # Studies of earlier versions do not say which runs they have, but write their table at the end.
    over = done == count if count else (folder / RESULTS).is_file()
    state = "running" if is_locked(folder) else "finished" if over else "stopped"
    them = called(folder / name for name in planned(folder))
    return {"state": state, "progress": f"{done} of {count} {them}" if count else "", "result": headline(folder)}


def _run(folder: Path, record: RunRecord, headline: Headline) -> dict[str, str]:
    if is_finished(folder):
        return {"state": "finished", "progress": "", "result": headline(read_json(folder / RESULT))}
    state, done = "running" if is_locked(folder) else "stopped", ""
    try:
        last: Mapping[str, Any] = read_metrics(folder / "metrics.csv")[-1]
    except (OSError, ValueError, IndexError):  # nothing is there yet
        last = {}
    for counter, total in COUNTERS.items():
        if counter in last:
            of = record.config.get(total)
            done = f"{last[counter]:,.0f}" + (f" of {of:,} steps" if isinstance(of, int) else " steps")
    return {"state": state, "progress": done, "result": ""}


def _changed(folder: Path) -> datetime:
    """When a file of the run, or of the study itself, was last written."""
    times = [folder.lstat().st_mtime]
    with contextlib.suppress(PermissionError):  # the folder cannot be read
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a temporary file of a process that writes
                times.append(path.lstat().st_mtime)
    return datetime.fromtimestamp(max(times)).replace(microsecond=0)
