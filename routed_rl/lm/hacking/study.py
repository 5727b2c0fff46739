"""A hacking study as an object: ways to keep a language model from exploiting its grader, compared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.lm.hacking import report
from routed_rl.lm.hacking.methods import WITHOUT_OVERSEER
from routed_rl.lm.hacking.registry import REGISTRY
from routed_rl.lm.hacking.training import BASE, base_name, run_config
from routed_rl.lm.hacking.worlds import FINE, HACK, UNFLAGGED, HackingWorld
from routed_rl.options.conform import conform
from routed_rl.options.hacking import HackingOptions, HackingRun, HackingTraining
from routed_rl.plugins import Plugin
from routed_rl.runs.grid import Kind, is_finished, options
from routed_rl.runs.pool import PYTHON
from routed_rl.runs.record import find_run
from routed_rl.runs.studies import Findings, Study, check_study, refuse_unknown
from routed_rl.wording import shown, written

KIND = Kind(
    config=run_config,
    command=lambda batch: [*PYTHON, "routed_rl.lm.hacking.worker", *options(batch[0], HackingRun())],
    total=lambda run: 1 if run.method == BASE else run.relearning or run.updates,
    counter="step",
    unit="updates",
    after=lambda run: [run.base] if run.base is not None else [],
)


@dataclass(frozen=True, init=False, eq=False)
class HackingStudy(HackingOptions, Study):
    """Ways to keep a language model from exploiting its grader, compared over oversight and seeds.

    >>> study = HackingStudy(worlds=[MyWorld], methods=["plain", "penalty", "routing-solo"])  # doctest: +SKIP
    >>> study.run("runs/my-world")  # doctest: +SKIP

    Every field of :class:`~routed_rl.options.hacking.HackingOptions`, that is every option of ``routed-rl hacking``, is
    an argument with the same name and default. A study of this class and a command with the same options share their
    directory and their bytes.

    Args:
        **given: the options. A world may be a subclass of :class:`~routed_rl.lm.hacking.worlds.HackingWorld`, in a
            module that other processes can import.

    Raises:
        TypeError: for an argument that is not an option.
        UserError: for a value that cannot be used.
    """

    KIND = KIND
    TITLE = "Hacking study"
    FIGURES = ("hacking", "training", "relearning")

    def __init__(self, **given: Any):
        refuse_unknown(HackingOptions, given, [field.name for field in fields(HackingOptions)])
        HackingOptions.__init__(self, **conform(HackingOptions, given))
        object.__setattr__(self, "out", Path(os.path.abspath(self.out)))

    def plan(self) -> pd.DataFrame:
        """Return what ``run`` would do, without doing it.

        Returns:
            A row per run, with ``run``, its directory below ``out``; ``world``; ``method``; ``oversight``; ``seed``;
            and ``reason``, why it would run, or "is finished".

        Raises:
            UserError: for options that the study cannot use.
        """
        with user_input():
            runs = self._prepare(True)
            check_study(self.out, self._identity())
        rows = [
            (run.out.relative_to(self.out).as_posix(), run.world, run.method, run.oversight, run.seed, _reason(run.out))
            for run in runs
        ]
        return pd.DataFrame(rows, columns=["run", "world", "method", "oversight", "seed", "reason"])

    @cached_property
    def _worlds(self) -> dict[str, Plugin[HackingWorld]]:
        return REGISTRY.find_all(self.worlds, "--worlds")

    def _identity(self) -> Mapping[str, Any]:
        """The options that all runs share. Worlds, methods, oversight levels and seeds may be added later."""
        shared = (field.name for field in fields(HackingTraining) if field.name != "at_once")
        return {name: getattr(self, name) for name in shared}

    def _prepare(self, here: bool) -> Sequence[HackingRun]:
        self._check()
        return list(self._grid())

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs. None: no run is finished."""
        return report.find(self.out, failed or {})

    def _failure(self, failed: Mapping[Path, str], runs: Sequence[HackingRun]) -> str:
        return f"{len(failed)} runs failed; the finished runs are in {self.out / 'results.csv'}"

    def _check(self) -> None:
        at_least(1, seeds=self.seeds, updates=self.updates, every=self.every, rank=self.rank)
        at_least(1, relearning=self.relearning)
        at_least(2, group=self.group)
        for name, given in (("worlds", self.worlds), ("methods", self.methods), ("oversight", self.oversight)):
            if given is not None and (not given or len(set(given)) < len(given)):
                raise UserError(f"--{name} must be one or more different values, got {shown(given)}")
        if bad := [share for share in self.oversight or () if not 0 < share <= 1]:
            raise UserError(f"--oversight must be above 0 and at most 1, got {bad[0]}")
        batch = written("--batch-size", self.batch_size)
        if self.batch_size < self.group or self.batch_size % self.group:
            asked = written("--group", self.group)
            raise UserError(f"{batch} must be a multiple of {asked}, the completions of a prompt")
        if self.at_once is not None and (self.at_once < 1 or self.batch_size % self.at_once):
            raise UserError(f"{batch} must be a multiple of {written('--at-once', self.at_once)}")
        numbers = {"learning-rate": self.learning_rate, "beta": self.beta, "penalty": self.penalty}
        for name, number in numbers.items():
            if not 0 <= number < float("inf"):
                raise UserError(f"--{name} must be a finite number of at least 0, got {number}")
        with user_input():
            for name, plugin in self._worlds.items():
                check_world(name, plugin.kind(), self.batch_size // self.group)

    def _levels(self, world: HackingWorld) -> tuple[float, ...]:
        return self.oversight or world.levels

    def _grid(self) -> Iterator[HackingRun]:
        """All runs: every method at every oversight, in ``runs/WORLD/METHOD/OVERSIGHT-sSEED``.

        Before them, the models from which they start. After them, the further training of some.
        """
        shared: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(HackingTraining)}
        made: set[Path] = set()
        for seed in range(self.seeds):
            for given, (name, plugin) in zip(self.worlds, self._worlds.items(), strict=True):
                base = self.out / "runs" / BASE / f"{base_name(plugin)}-s{seed}"
                if base not in made:
                    yield HackingRun(world=str(given), method=BASE, seed=seed, out=base)
                made.add(base)
                levels = self._levels(plugin.kind())
                for method in self.methods:
                    for share in levels if method not in WITHOUT_OVERSEER else [max(levels)]:
                        out = self.out / "runs" / name / method / f"{share!r}-s{seed}"
                        own: dict[str, Any] = {"method": method, "oversight": share, "seed": seed, "world": str(given)}
                        yield HackingRun(**shared, **own, base=base, out=out)
                        if method in self.relearned and share == max(levels):
                            later = out.with_name(out.name + report.LATER)
                            yield HackingRun(**shared, **own, relearning=self.relearning, base=out, out=later)


def check_world(name: str, world: HackingWorld, least: int) -> None:
    """Try a world once, without its model.

    Args:
        name: of the world, for errors.
        least: number of prompts that an update needs.

    Raises:
        ValueError: for what the world lacks, or does wrongly.
    """
    if not isinstance(getattr(world, "most_tokens", None), int) or world.most_tokens < 1:
        raise ValueError(f"world {name} needs a number 'most_tokens', the length of the longest completion")
    levels = world.levels
    if not levels or not all(0 < share <= 1 for share in levels):
        raise ValueError(f"world {name}: levels must be shares above 0 and at most 1, got {levels!r}")
    for what, rows in (("prompts", world.prompts(levels[0], 0)), ("tests", world.tests(0))):
        wrong = [row for row in rows if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str)]
        if wrong or not rows:
            got = f"got {shown([wrong[0]])}" if wrong else "got no rows"
            raise ValueError(
                f"world {name}: {what}() must return mappings with a text under 'prompt' (for a chat, what "
                f"apply_chat_template(…, tokenize=False) of its tokenizer returns), {got}"
            )
        if what == "prompts" and len(rows) < least:
            raise ValueError(
                f"world {name}: prompts() returned {len(rows)} rows, and each update needs {least} (--batch-size "
                "divided by --group): return more rows, also the same ones again, or use smaller batches"
            )
        outcome, said = world.outcome("", rows[0]), world.says("", rows[0])
        if said not in (HACK, FINE, UNFLAGGED):
            raise ValueError(f"world {name}: says() must return 'hack', 'fine' or 'unflagged', got {said!r}")
        if not isinstance(outcome, str) or not isinstance(world.looks(rows[0], levels[0], 0.5), bool):
            raise ValueError(f"world {name}: outcome() must return a text, and looks() True or False")


def _reason(out: Path) -> str:
    """Why a run would be done, or "is finished"."""
    if is_finished(out):
        return "is finished"
    return "was interrupted" if find_run(out) is not None else "is new"
