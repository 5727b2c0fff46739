"""Stages of a pipeline: runs whose directory names are hashes of everything that they depend on.

The key of a stage is a hash of its kind, version, configuration, seed and its parents' keys. If a stage changes, it and
all stages after it get new directories; the others keep theirs. The result of a finished stage contains the hashes of
the files that it wrote. They are checked before the files are used.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routed_rl.errors import user_input
from routed_rl.paths import expanded
from routed_rl.runs.files import JSON, StrPath, read_json
from routed_rl.runs.record import RunError, RunRecord, config_hash, differences, find_run
from routed_rl.runs.rundir import RESULT, RunDirectory

if TYPE_CHECKING:
    import pandas as pd

FEW = 3
"""Options in which a stage may differ from the stage that it takes the place of."""
FILES, DIGEST = "files", "digest"
"""Keys in a stage's result: the hash of each file that the stage wrote, and the hash of the rest of the result."""


@dataclass(frozen=True)
class Stage:
    """A step of a pipeline, with the stages that it depends on.

    Attributes:
        kind: the name of what it does, e.g. ``"train"``; the directory name starts with it.
        config: its options, as JSON.
        seed: determines all its random numbers.
        parents: role → the stage that has this role and whose files are read, e.g. ``"teacher"`` → a stage.
        version: the version of its code; increase it when the code computes something else.
    """

    kind: str
    config: Mapping[str, JSON]
    seed: int
    parents: Mapping[str, "Stage"]
    version: int = 1

    @cached_property
    def record(self) -> RunRecord:
        """The configuration and seed of the stage's run."""
        parents: dict[str, JSON] = {name: parent.key for name, parent in self.parents.items()}
        whole = {"stage": self.kind, "version": self.version, "options": self.config, "parents": parents}
        return RunRecord.of(whole, self.seed)

    @cached_property
    def key(self) -> str:
        """10 hex digits of the hash of everything that the stage depends on."""
        return config_hash({"config": self.record.config, "seed": self.seed})

    def path(self, root: StrPath) -> Path:
        """Return the stage's directory, given the directory of all stages."""
        return expanded(root) / f"{self.kind}-{self.key}"

    def open(self, root: StrPath) -> RunDirectory:
        """Return the stage's run: new, unfinished or finished; raise the errors of :meth:`RunDirectory.open`."""
        return RunDirectory.open(self.path(root), self.record.config, self.seed)

    def result(self, root: StrPath) -> dict[str, Any] | None:
        """Return the stage's result; None until the stage is finished.

        Raises:
            RunError: if its directory is not that of this run, or its files or its result were edited.
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
                f"{str(path / edited[0])!r} is not what the stage wrote: delete {str(path)!r} to run the stage again"
            )
        return result


def finish_stage(run: RunDirectory, result: Mapping[str, JSON], files: Iterable[str] = ()) -> None:
    """Finish a stage's run: write its result, with the hashes of ``files`` (names in the run's directory).

    Raises:
        RunError: if a file is missing.
    """
    digests = {name: _digest(run.path / name) for name in sorted(files)}
    if missing := [name for name, digest in digests.items() if digest is None]:
        raise RunError(f"the stage {str(run.path)!r} must write {missing[0]!r} before it finishes, but has not")
    whole = {**result, FILES: digests}
    run.finish({**whole, DIGEST: config_hash(whole)})


def with_ancestors(stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages and all their ancestors, each once, with parents before children."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in found:
            for parent in stage.parents.values():
                visit(parent)
            found[stage.key] = stage

    for stage in stages:
        visit(stage)
    return list(found.values())


def plan(stages: Sequence[Stage], root: StrPath) -> Iterator[tuple[Stage, str | None]]:
    """Yield each stage with the reason why it must run, or with None if it is finished.

    A new stage is compared with a stage of its kind that is in the directory and not in the plan any more: usually the
    one that it takes the place of. If all of these have another seed, or differ in more than ``FEW`` options, they
    have nothing to do with it.

    Raises:
        RunError: as :meth:`Stage.result` does.
    """
    planned = {stage.path(root).name for stage in stages}
    others = [path for path in sorted(expanded(root).glob("*-*")) if path.name not in planned]
    there = [run for path in others if (run := _found(path)) is not None]
    for stage in stages:
        if stage.result(root) is not None:
            yield stage, None
        elif find_run(stage.path(root)) is not None:
            yield stage, "was interrupted"
        else:
            of_kind = [run for run in there if run.config.get("stage") == stage.kind and run.seed == stage.seed]
            closest = min((_changes(run, stage) for run in of_kind), key=len, default=[])
            related = 0 < len(closest) <= FEW + len(stage.parents)
            yield stage, f"is new: {'; '.join(closest)}" if related else "is new"


def _changes(run: RunRecord, stage: Stage) -> list[str]:
    """Return the differences of a stage from an earlier run, its parents' after its own."""
    found = [difference.removeprefix("config.") for difference in differences(run, stage.record)]
    own = [difference.removeprefix("options.") for difference in found if not difference.startswith("parents.")]
    parents = [f"its {role} is another stage" for role in stage.parents if any(f"parents.{role} " in d for d in found)]
    return own + parents


def _found(path: Path) -> RunRecord | None:
    """Return the record of the run at ``path``; None if there is no run."""
    try:
        return find_run(path)
    except (RunError, OSError):
        return None


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def stage_table(
    stages: Sequence[Stage], root: Path, names: Mapping[str, str], trained: Collection[str]
) -> "pd.DataFrame":
    """Return a row for each stage of a plan, in this order, with the reason why it would run.

    Args:
        root: the directory of all stages.
        names: what a stage belongs to, by the stage's key.
        trained: kinds of stages that train or attack a model.

    Raises:
        UserError: if a stage's directory holds something else.
    """
    import pandas as pd

    with user_input():
        rows = [
            {
                "stage": stage.path(root).name,
                "model": names[stage.key],
                "seed": stage.seed,
                "trains": stage.kind in trained,
                "reason": reason or "is finished",
            }
            for stage, reason in plan(stages, root)
        ]
    return pd.DataFrame(rows)
