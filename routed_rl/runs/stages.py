"""Stages of a pipeline: runs whose directories are named by all that they depend on.

A stage's key is the hash of what it is, its version, its configuration, its seed and its parents' keys: what changes
in a stage gives it, and all that follow it, other directories, and leaves every other one where it is. A finished
stage's result has the hashes of the files it leaves; whoever reads them looks at these first.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from routed_rl.runs.files import JSON, read_json
from routed_rl.runs.record import RunError, RunRecord, config_hash, differences, find_run
from routed_rl.runs.rundir import RESULT, RunDirectory

FILES, DIGEST = "files", "digest"
"""In a stage's result: the hash of each file that it leaves, and of all the rest of the result."""


@dataclass(frozen=True)
class Stage:
    """A step of a pipeline, and what it goes on from.

    Attributes:
        kind: what it does.
        config: its options, as JSON.
        seed: fixes everything random in it.
        parents: the stages whose files it reads, by what they are to it.
        version: of the code; raise it when that computes something else.
    """

    kind: str
    config: Mapping[str, JSON]
    seed: int
    parents: Mapping[str, "Stage"]
    version: int = 1

    @cached_property
    def record(self) -> RunRecord:
        """The configuration and seed of its run."""
        parents: dict[str, JSON] = {name: parent.key for name, parent in self.parents.items()}
        whole = {"stage": self.kind, "version": self.version, "options": self.config, "parents": parents}
        return RunRecord.of(whole, self.seed)

    @cached_property
    def key(self) -> str:
        """10 hex digits of the hash of all that it depends on."""
        return config_hash({"config": self.record.config, "seed": self.seed})

    def path(self, root: Path) -> Path:
        """Its directory in that of all stages."""
        return root / f"{self.kind}-{self.key}"

    def open(self, root: Path) -> RunDirectory:
        """Its run, new, to be continued or finished; RunError as :meth:`RunDirectory.open`."""
        return RunDirectory.open(self.path(root), self.record.config, self.seed)

    def result(self, root: Path) -> dict[str, Any] | None:
        """Its result; None until it is finished.

        Raises:
            RunError: if something else is in its directory, or the files it left are not those that it wrote.
        """
        path = self.path(root)
        if find_run(path) is None:
            return None
        try:
            result: dict[str, Any] = read_json(path / RESULT)
            edited = [RESULT] if result.pop(DIGEST) != config_hash(result) else []
            edited += [name for name, digest in result[FILES].items() if _digest(path / name) != digest]
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError, AttributeError):
            edited = [RESULT]
        if edited:
            raise RunError(
                f"{str(path / edited[0])!r} is not what the stage wrote: delete {str(path)!r}, and it is made again"
            )
        return result


def finish_stage(run: RunDirectory, result: Mapping[str, JSON], files: Iterable[str] = ()) -> None:
    """Finish a stage's run with its result and the hashes of files, by their names in its directory; RunError if one
    is missing."""
    digests = {name: _digest(run.path / name) for name in sorted(files)}
    if missing := [name for name, digest in digests.items() if digest is None]:
        raise RunError(f"the stage {str(run.path)!r} has left no {missing[0]!r}")
    whole = {**result, FILES: digests}
    run.finish({**whole, DIGEST: config_hash(whole)})


def with_ancestors(stages: Iterable[Stage]) -> list[Stage]:
    """Stages and all that they depend on, each once, none before its parents."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in found:
            for parent in stage.parents.values():
                visit(parent)
            found[stage.key] = stage

    for stage in stages:
        visit(stage)
    return list(found.values())


def plan(stages: Sequence[Stage], root: Path) -> Iterator[tuple[Stage, str | None]]:
    """Each stage with the reason why it is to be run; None if it is finished.

    Raises:
        RunError: as :meth:`Stage.result`.
    """
    there = [run for path in sorted(root.glob("*-*")) if (run := _found(path)) is not None]
    for stage in stages:
        if stage.result(root) is not None:
            yield stage, None
        elif find_run(stage.path(root)) is not None:
            yield stage, "was interrupted"
        else:
            others = [differences(run, stage.record) for run in there if run.config.get("stage") == stage.kind]
            closest = min(others, key=len, default=[])
            yield stage, f"is new: {'; '.join(closest)}" if closest else "is new"


def _found(path: Path) -> RunRecord | None:
    """The run at a path; None where there is none."""
    try:
        return find_run(path)
    except (RunError, OSError):
        return None


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
