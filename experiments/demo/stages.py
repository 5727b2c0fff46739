"""The stages of a study of ``routed-rl undo`` or ``arena`` in its directory, and which of the two made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routed_rl.errors import user_input
from routed_rl.runs import read_json
from routed_rl.runs.grid import STAGES, is_finished
from routed_rl.runs.record import RunError, find_run
from routed_rl.runs.studies import STUDY


@dataclass(frozen=True)
class Run:
    """A stage of a study in its directory, as :class:`routed_rl.runs.Stage` names it."""

    path: Path
    kind: str
    options: Mapping[str, Any]
    parents: Mapping[str, str]
    seed: int
    finished: bool

    @property
    def key(self) -> str:
        """The hash in the directory's name."""
        return self.path.name.rpartition("-")[2]


def is_undo(directory: Path) -> bool:
    """Return whether a directory is that of an UNDO study; UserError if its description cannot be read."""
    return _is_of(directory, "task")


def is_arena(directory: Path) -> bool:
    """Return whether a directory is that of an arena; UserError if its description cannot be read."""
    return _is_of(directory, "benchmark")


def _is_of(directory: Path, option: str) -> bool:
    """Say whether a study has stages, and the option that all studies of a command share."""
    with user_input():
        described = read_json(directory / STUDY) if (directory / STAGES).is_dir() else {}
    return isinstance(described, dict) and option in described


def read_stages(stages: Path) -> dict[str, Run]:
    """Return the stages in a directory, by key, in the order in which they depend on each other."""
    found = {}
    for path in sorted(stages.glob("*-*/")):
        try:
            record = find_run(path)
        except RunError:  # another folder, or the user's
            continue
        if record is not None and "stage" in record.config:
            of = record.config
            run = Run(path, of["stage"], of["options"], of["parents"], record.seed, is_finished(path))
            found[run.key] = run
    ordered: dict[str, Run] = {}

    def visit(key: str) -> None:
        if key in found and key not in ordered:
            for parent in found[key].parents.values():
                visit(parent)
            ordered[key] = found[key]

    for key in found:
        visit(key)
    return ordered
