"""The oversight study as an object: methods compared over oversight levels and seeds, in the user's own environment."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar, Generic, TypeVar, get_args

import gymnasium as gym
import pandas as pd
from stable_baselines3.common.vec_env import VecEnv

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.options.conform import conform
from routed_rl.options.oversight import OWN, Learner, MethodName, Run, StudyOptions
from routed_rl.own_modules import name_of
from routed_rl.rl.oversight_study.grid import check_options, kind, run_config, worker_command
from routed_rl.rl.oversight_study.methods import is_own, title, variant
from routed_rl.rl.oversight_study.recipe import own_task
from routed_rl.rl.oversight_study.report import USUAL_FOCUS, OversightReport
from routed_rl.rl.oversight_study.table import Limits
from routed_rl.rl.oversight_study.tasks import values_of, wanted_of
from routed_rl.runs.grid import is_finished
from routed_rl.runs.studies import Findings, Study, check_study, refuse_unknown
from routed_rl.wording import shown, written

R = TypeVar("R", bound=Run)


class OversightGrid(Study, Generic[R]):
    """A study of methods over oversight levels and seeds. Subclasses say what all of its runs have in common."""

    TITLE = OversightReport.TITLE
    FIGURES: ClassVar[tuple[str, ...]] = OversightReport.FIGURES
    methods: tuple[str, ...]
    levels: tuple[float, ...]
    controls: tuple[str, ...]
    focus: float | None
    seeds: int
    parallel_seeds: int
    limits: Limits | None = None

    @property
    @abstractmethod
    def base(self) -> R:
        """A run with the options that all runs share."""

    @abstractmethod
    def _wanted(self) -> str:
        """The wanted outcome."""

    @abstractmethod
    def _check_runs(self, runs: Sequence[R]) -> None:
        """Raise UserError for runs that cannot be trained."""

    @property
    def main_level(self) -> float:
        """The oversight level of controls, learning curves, bars and label noise."""
        return min(self.levels, key=lambda level: abs(level - USUAL_FOCUS)) if self.focus is None else self.focus

    def plan(self) -> pd.DataFrame:
        """Return what :meth:`run` would do, without doing it.

        Returns:
            A row per run, with ``run``, its directory below ``out``; ``method``; ``oversight``; ``seed``; and if it is
            ``finished``.

        Raises:
            UserError: for options or an environment that the study cannot use.
        """
        with user_input():
            runs = self._prepare(True)
            check_study(self.out, self._identity())
        outs = [run.out or self.out for run in runs]
        rows = [
            (out.relative_to(self.out).as_posix(), out.parent.name, run.oversight, run.seed, is_finished(out))
            for run, out in zip(runs, outs, strict=True)
        ]
        return pd.DataFrame(rows, columns=["run", "method", "oversight", "seed", "finished"])

    def _prepare(self, here: bool) -> list[R]:
        self._check(here)
        runs = self._grid()
        self._check_runs(runs)
        return runs

    def _grid(self) -> list[R]:
        """The runs of the study: all methods at all levels, and the controls at the focus level.

        The directory of a run is ``runs/METHOD/LEVEL-sSEED``.
        """
        cells = [(name, level) for level in self.levels for name in self.methods]
        cells += [(name, self.main_level) for name in self.controls if (name, self.main_level) not in cells]
        base, place = self.base, self.out / "runs"
        return [
            replace(
                base, **variant(name, base), oversight=level, seed=seed, out=place / title(name) / f"{level!r}-s{seed}"
            )
            for seed in range(self.seeds)
            for name, level in cells
        ]

    def _report(self) -> OversightReport:
        """All runs in the directory, also those of earlier starts with other methods, levels or seeds."""
        runs: dict[str, list[Path]] = {}
        for result in sorted((self.out / "runs").glob("*/*/evaluation.json")):
            runs.setdefault(result.parent.parent.name, []).append(result.parent)
        return OversightReport(runs, self._wanted(), self.main_level, [*map(title, self.methods)], self.limits)

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs, also of earlier starts. None: no run is finished."""
        return self._report().find(failed)

    def _failure(self, failed: Mapping[Path, str], runs: Sequence[R]) -> str:
        return f"{len(failed)} runs failed; the others are in {self.out / 'results.csv'}"

    def _check(self, here: bool) -> None:
        """UserError for the first option that no study can have."""
        at_least(1, seeds=self.seeds, parallel_seeds=self.parallel_seeds, total_steps=self.base.total_steps)
        if not here and self.device != "cpu":
            ray, device = written("--backend", "ray"), written("--device", self.device)
            raise UserError(f"{ray} trains on CPUs only; leave out {device}")
        for name, given in (("methods", self.methods), ("levels", self.levels)):
            if not given or len(set(given)) < len(given):
                raise UserError(f"--{name} must name at least one and each only once, got {shown(given)}")
        focus = [] if self.focus is None else [self.focus]
        if bad := [level for level in (*self.levels, *focus) if not 0 < level <= 1]:
            raise UserError(f"--levels and --focus must be above 0 and at most 1, got {bad[0]}")
        if focus and focus[0] not in self.levels and not self.controls:
            raise UserError(
                f"--focus must be one of the --levels {shown(self.levels)} unless --controls are given, got {focus[0]}"
            )
        with user_input():
            titles: dict[str, str] = {}
            for name in dict.fromkeys((*self.methods, *self.controls)):
                variant(name, self.base)
                if title(name) in titles or (is_own(name) and title(name) in get_args(MethodName)):
                    raise UserError(
                        f"the method {name} needs a name of its own, because {title(name)!r} is that of "
                        f"{titles.get(title(name), 'a built-in method')}: rename it"
                    )
                titles[title(name)] = name


@dataclass(frozen=True)
class OwnOptions(StudyOptions):
    """The options of a study in an environment of the user's own."""

    total_steps: int = 300_000
    """environment steps per run"""
    learner: Learner = OWN
    """hyperparameters of the learner"""


@dataclass(frozen=True, init=False, eq=False)
class OversightStudy(OwnOptions, OversightGrid[Run]):
    """Methods compared in an environment of your own, over oversight levels and seeds.

    >>> study = OversightStudy(env="my_package:make_env", outcomes={"lava": -1, "goal": 1})  # doctest: +SKIP
    >>> study.run("runs/mine")  # doctest: +SKIP
    >>> study.figure("returns").savefig("returns.png")  # doctest: +SKIP

    Every field of ``OwnOptions`` is an argument with the same name and default. The same options of ``routed-rl
    oversight`` give the same directory and the same bytes. After an interruption, a run continues if the state of its
    environment can be saved (``routed_rl.rl.env_state``). Otherwise it starts again from zero, to the same bytes.

    Args:
        env: ``"MODULE:FUNCTION"``, or a function of a module. It is called with an oversight level, and returns a
            Gymnasium environment with partial oversight, such as ``PartialOversight(…, probability=level)``.
        outcomes: outcome → its value to the supervisor. The value, paid at the end of an episode, is the true reward.
        limits: known true returns of reference policies, by title, as a function of the oversight level, to be drawn
            and printed, such as ``lambda level: {"shortest path": 0.9}``. None: nothing is drawn.
        **given: the other options.

    Raises:
        TypeError: for an argument that is not an option.
        UserError: for a value of another type, or a function that other processes cannot import.
    """

    KIND = kind(worker_command)

    def __init__(
        self,
        env: str | Callable[[float], Any],
        outcomes: Mapping[str, float] | Sequence[str] = (),
        *,
        limits: Limits | None = None,
        **given: Any,
    ) -> None:
        if isinstance(env, Mapping):
            raise TypeError("OversightStudy trains runs; for runs that exist, use OversightReport(runs)")
        names = [field.name for field in fields(OwnOptions)]
        refuse_unknown(OwnOptions, given, names)
        with user_input():
            outcomes = [f"{name}={value}" for name, value in values_of(outcomes).items()]
            env = _name_of(env)
        OwnOptions.__init__(self, **conform(OwnOptions, {**given, "env": env, "outcomes": outcomes}))
        object.__setattr__(self, "out", Path(os.path.abspath(self.out)))
        object.__setattr__(self, "limits", limits)

    @property
    def base(self) -> Run:
        shared = {field.name for field in fields(Run)} & {field.name for field in fields(OwnOptions)} - {"out"}
        return Run(**{name: getattr(self, name) for name in shared})

    def _wanted(self) -> str:
        return wanted_of(own_task(self.base.config()).values)

    def _check_runs(self, runs: Sequence[Run]) -> None:
        check_options(runs, own_task, self.parallel_seeds)
        with user_input():
            own_task(runs[0].config()).check()

    def _identity(self) -> Mapping[str, Any]:
        """The options that all runs share. Methods, levels and seeds may be added later."""
        shared = run_config(self.base)
        return {name: value for name, value in shared.items() if name not in ("method", "oversight")}


def _name_of(env: object) -> str:
    """Return the name of what makes environments; ValueError for anything else, such as an environment itself."""
    if isinstance(env, str):
        return env
    if isinstance(env, (FunctionType, type)):
        return name_of(env)
    got = " ".join(repr(env).split())
    advice = ": pass the function that makes it" if isinstance(env, (gym.Env, VecEnv)) else ""
    raise ValueError(
        "--env must be a function of a module, which takes an oversight level and returns an environment, or its name "
        f"'MODULE:FUNCTION', got {got}{advice}"
    )
