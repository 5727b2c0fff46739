"""The record of a run in its directory: configuration, seed, and the versions it was started with."""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from routed_rl.errors import UserError
from routed_rl.paths import expanded
from routed_rl.runs.files import JSON, StrPath, is_temporary, plain_json, read_json
from routed_rl.runs.seeds import check_seed

CONFIG, LOCK = "config.json", ".lock"
PACKAGES = ("gymnasium", "numpy", "routed-rl", "stable-baselines3", "torch")


class RunError(UserError):
    """A run directory cannot be used; the message is one line that quotes its path and says why."""


@dataclass(frozen=True)
class RunRecord:
    """The `config` and `seed` that determine a run, with the `config_hash`: the content of `config.json`."""

    config: dict[str, Any]
    config_hash: str
    seed: int

    @classmethod
    def of(cls, config: Mapping[str, JSON], seed: int) -> "RunRecord":
        """Return the record of a run; raise TypeError or ValueError, with the key, for what JSON cannot hold."""
        return cls(plain_json(config, "config"), config_hash(config), check_seed(seed))

    def as_json(self) -> dict[str, JSON]:
        """Return the content of `config.json`."""
        return asdict(self)


def config_hash(config: Mapping[str, JSON]) -> str:
    """Return 10 hex digits of the SHA-256 of `config`. The order of the keys does not matter."""
    text = json.dumps(plain_json(config, "config"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def read_run(path: StrPath) -> RunRecord:
    """Return the configuration and seed of the run at `path`; write nothing and take no lock.

    Raises RunError if there is no run at `path`, or its `config.json` was edited. If there are runs below `path`, as in
    the directory of a study, the error names some of them.
    """
    path = expanded(path)
    if path.is_dir() and not (path / CONFIG).exists():
        if inside := _runs_in(path):
            more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
            raise RunError(f"{str(path)!r} is not a run but holds runs: name one of {', '.join(inside[:3])}{more}")
        raise RunError(f"{str(path)!r} is not a run: name the directory of one, which holds a {CONFIG}")
    record = find_run(path)
    if record is None:
        raise RunError(f"there is no run at {str(path)!r}")
    return record


def _runs_in(path: Path) -> list[str]:
    """Return the paths of the runs in a directory, at most as deep as those of a study."""
    found = []
    for config in itertools.chain.from_iterable(sorted(path.glob(f"{'*/' * depth}{CONFIG}")) for depth in (1, 2, 3)):
        with contextlib.suppress(RunError, OSError):  # a folder of a language model has a file of this name too
            find_run(config.parent)
            found.append(str(config.parent))
    return found


def find_run(path: Path) -> RunRecord | None:
    """Return the record of the run at `path`; None if `path` does not exist or is empty, so that a run can start there.

    Raises RunError if `path` is something else, OSError if it cannot be read.
    """
    if not os.path.lexists(path):
        return None
    if not path.is_dir():
        raise RunError(f"{str(path)!r} is not a directory, so it cannot hold a run")
    names = sorted(entry.name for entry in path.iterdir())
    if CONFIG not in names:
        # A run that was killed before it wrote its first file leaves only a lock and temporary files.
        if strangers := [name for name in names if name != LOCK and not is_temporary(name, CONFIG)]:
            raise RunError(
                f"{str(path)!r} is not a run and not empty, it contains {strangers[0]!r}: choose another directory"
            )
        return None
    try:
        data = read_json(path / CONFIG)
        record = RunRecord.of(data["config"], data["seed"])
    except (ValueError, TypeError, KeyError):
        raise RunError(f"{str(path)!r} is not a run: its {CONFIG} does not describe one") from None
    if data != record.as_json():
        raise RunError(f"the {CONFIG} of the run {str(path)!r} was edited: it does not match its hash")
    return record


def check_run(path: StrPath, config: Mapping[str, JSON], seed: int) -> None:
    """Raise RunError unless the run of `config` and `seed` can start or continue at `path`; write nothing."""
    path = expanded(path)
    stored = find_run(path)
    if stored is not None:
        refuse_other(path, stored, RunRecord.of(config, seed))


def refuse_other(path: Path, stored: RunRecord, given: RunRecord) -> None:
    """Raise RunError, with the differences, if the run `stored` at `path` is not the run `given`."""
    if differing := differences(stored, given):
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        shown = "; ".join(differing[:3]) + more
        raise RunError(f"{str(path)!r} holds another run, so choose another directory: {shown}")


def differences(stored: RunRecord, given: RunRecord) -> list[str]:
    """Return the differences between the runs `stored` and `given`, one phrase per entry."""
    there = _leaves({"seed": stored.seed, "config": stored.config})
    here = _leaves({"seed": given.seed, "config": given.config})
    differing = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    return [f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here" for name in differing]


def versions() -> dict[str, JSON]:
    """Return the versions that a result may depend on, and the git commit (None outside a checkout).

    It leaves out build tags such as `+cpu`, times, host names and paths. So the same installation gives the same bytes
    on every machine.
    """
    found: dict[str, JSON] = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "git_commit": _git_commit(), **found}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the git commit of this package's checkout, or else of the working directory's; None without a checkout.

    It ends in ``-dirty`` if tracked files have changes.
    """
    for directory in (Path(__file__).resolve().parent, Path.cwd()):
        try:
            command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def _leaves(value: JSON, name: str = "") -> dict[str, str]:
    """Return the entries of nested mappings, dotted name → JSON text (in which 1, 1.0 and true differ)."""
    if isinstance(value, Mapping) and value:
        leaves: dict[str, str] = {}
        for key, child in value.items():
            leaves |= _leaves(child, f"{name}.{key}" if name else key)
        return leaves
    return {name: json.dumps(value)}
