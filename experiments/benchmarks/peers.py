"""``routed-rl benchmark --peers``: our learner and environments compared with compiled programs of others, on one core.

All learners do the work of preset quick: the same rules of the world, observations, networks and hyperparameters. They
train from scratch until their true return is 0.50, update by update in turn. Then their speed is measured in turn.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from routed_rl.envs import DiamondGhostTensorVecEnv, DiamondGhostVecEnv, make_world
from routed_rl.experiments.benchmarks import peers_torch
from routed_rl.experiments.benchmarks.learning import TARGET
from routed_rl.experiments.benchmarks.timing import as_json as measured_as_json
from routed_rl.experiments.benchmarks.timing import machine, take_turns
from routed_rl.experiments.benchmarks.training import UPDATES
from routed_rl.experiments.common.agents.options import PRESETS
from routed_rl.experiments.common.display import show_table
from routed_rl.runs.progress import progress_display

LAST_EPISODES = 2000
"""A learner reaches the target when the mean true return of its newest episodes, at least so many, passes it."""
MOST_UPDATES = 250
"""Updates after which a learner counts as one that does not reach the target. A run of the preset has 245."""
BATCH, STEPS = 4096, 100
"""Environments at once, and steps per call."""
OURS, OURS_ROUTED, OUR_TENSORS = "ours: PPO", "ours: routing and replay", "ours: tensors"
PACKAGES = ("jax", "jaxlib", "sbx-rl", "xminigrid", "navix")
FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
"""One thread for XLA."""


class Trainer(Protocol):
    """A learner that is compared."""

    def train(self, updates: int) -> None:
        """Train for some updates."""

    def returns(self) -> tuple[float, int]:
        """Return the sum of the discounted true returns of the newest episodes, and their number; not timed."""


@dataclass(frozen=True)
class Case:
    """A row of a table.

    Attributes:
        make: makes the learner, or the call that steps the environments.
        ours: name of our row to which its speed is compared.
        needs: import names of the packages that it needs.
    """

    make: Callable[[], Any]
    ours: str
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> str | None:
        """What to do about a package that is not installed; None if all are there."""
        if all(find_spec(name) for name in self.needs):
            return None
        return "not installed: pip install 'routed-rl[peers]'"


def _jax_program(routed: bool) -> Trainer:
    from routed_rl.experiments.benchmarks import peers_jax

    ours = peers_torch.Ours(routed=routed)
    return peers_jax.Program(
        ours.model.policy, make_world(oversight=ours.config["oversight"]), ours.config["learner"], routed=routed
    )


def _sbx() -> Trainer:
    from routed_rl.experiments.benchmarks import peers_sbx

    return peers_sbx.sbx()


def _compiled_world(name: str, *arguments: Any) -> Callable[[], None]:
    from routed_rl.experiments.benchmarks import peers_worlds

    call: Callable[[], None] = getattr(peers_worlds, name)(BATCH, STEPS, *arguments)
    return call


def _our_tensors() -> Callable[[], None]:
    env = DiamondGhostTensorVecEnv(BATCH, "cpu", seed=0)
    env.reset()

    def play() -> None:
        for actions in torch.randint(4, (STEPS, BATCH)):
            env.step(actions)

    return play


def _our_arrays() -> Callable[[], None]:
    env = DiamondGhostVecEnv(BATCH, seed=0)
    env.reset()

    def play() -> None:
        for actions in torch.randint(4, (STEPS, BATCH)).numpy():
            env.step(actions)

    return play


LEARNERS: dict[str, Case] = {
    OURS: Case(partial(peers_torch.Ours, routed=False), OURS),
    f"{OURS}, compiled": Case(partial(peers_torch.Ours, routed=False, compiled=True), OURS),
    "Stable-Baselines3 PPO": Case(peers_torch.stable_baselines3, OURS),
    "SBX PPO": Case(_sbx, OURS, ("jax", "flax", "sbx")),
    "CleanRL loop, torch.compile": Case(peers_torch.CompiledLoop, OURS),
    "JAX PPO": Case(partial(_jax_program, False), OURS, ("jax",)),
    OURS_ROUTED: Case(partial(peers_torch.Ours, routed=True), OURS_ROUTED),
    f"{OURS_ROUTED}, compiled": Case(partial(peers_torch.Ours, routed=True, compiled=True), OURS_ROUTED),
    "JAX PPO with routing and replay": Case(partial(_jax_program, True), OURS_ROUTED, ("jax",)),
}
"""Learners by name. Each JAX program of ours is one compiled function: environments, rollout and gradient steps."""
ENVIRONMENTS: dict[str, Case] = {
    OUR_TENSORS: Case(_our_tensors, OUR_TENSORS),
    "ours: numpy": Case(_our_arrays, OUR_TENSORS),
    "our rules in JAX": Case(partial(_compiled_world, "diamond_ghost"), OUR_TENSORS, ("jax",)),
    "XLand-MiniGrid Empty-5x5": Case(partial(_compiled_world, "xland"), OUR_TENSORS, ("jax", "xminigrid")),
    "Navix Empty-5x5": Case(partial(_compiled_world, "navix"), OUR_TENSORS, ("jax", "navix")),
}
"""Environments by name."""


@contextmanager
def one_core() -> Iterator[None]:
    """Within the block this process has one core, and JAX is told to use the CPU and one thread.

    JAX reads these settings when it is first imported, so the block must contain the first import.
    """
    settings = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip(), "JAX_PLATFORMS": "cpu"}
    kept = {name: os.environ.get(name) for name in settings}
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    os.environ.update(settings)
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        for name, value in kept.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def main(repeats: int, as_json: bool) -> None:
    """Measure, and print the tables.

    Args:
        repeats: repeats per measurement.
        as_json: print JSON instead of tables.
    """
    with progress_display(unit="measurements") as progress:
        task = progress.add_task("benchmark of peers", total=calls(repeats))
        results = measure(repeats, lambda: progress.advance(task))
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        _show(results)


def calls(repeats: int) -> int:
    """Number of calls of ``tick`` in :func:`measure`, unless a case fails."""
    cases = [*LEARNERS.values(), *ENVIRONMENTS.values()]
    return (repeats + 2) * sum(case.missing is None for case in cases)


def measure(repeats: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Return the machine, the versions of the peers, and the rows of learners and environments as JSON.

    A row that cannot be measured has only the entry "reason".
    """
    learner = PRESETS["quick"].learner
    steps, updates = learner.n_envs * learner.n_steps, UPDATES["quick"]
    with one_core():
        learners, trained = _made(LEARNERS)
        progress = {name: Progress(trainer) for name, trainer in trained.items()}
        while learning := {name: made for name, made in progress.items() if not made.over}:
            for name, made in learning.items():
                _guarded(name, made.update, learners, progress)
                if made.over or name not in progress:
                    tick()
        for name, made in progress.items():
            learners[name] = made.row(steps)
        turns = {name: (updates * steps, partial(made.trainer.train, updates)) for name, made in progress.items()}
        _add_speed(learners, LEARNERS, turns, repeats, tick)

        environments, played = _made(ENVIRONMENTS)
        firsts: dict[str, float] = {}
        for name, call in list(played.items()):
            start = time.perf_counter()
            _guarded(name, call, environments, played)
            firsts[name] = time.perf_counter() - start
            tick()
        turns = {name: (STEPS * BATCH, call) for name, call in played.items()}
        _add_speed(environments, ENVIRONMENTS, turns, repeats, tick)
        for name in played:
            environments[name]["compile_seconds"] = max(
                firsts[name] - STEPS * BATCH * environments[name]["median"], 0.0
            )
    return {
        "machine": {**machine(), **{name: _version(name) for name in PACKAGES}},
        "learners": learners,
        "peer_environments": environments,
    }


class Progress:
    """A learner on its way to the target. Time outside of its updates does not count."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.reached = trainer, False
        self.seconds: list[float] = []
        self._newest: list[tuple[float, int]] = []

    @property
    def over(self) -> bool:
        """Whether it has reached the target, or has had all updates."""
        return self.reached or len(self.seconds) >= MOST_UPDATES

    def update(self) -> None:
        """Train for an update, and look at the newest episodes."""
        start = time.perf_counter()
        self.trainer.train(1)
        self.seconds.append(time.perf_counter() - start)
        self._newest.append(self.trainer.returns())
        while sum(episodes for _, episodes in self._newest[1:]) >= LAST_EPISODES:
            self._newest.pop(0)
        total, episodes = map(sum, zip(*self._newest, strict=True))
        self.reached = episodes >= LAST_EPISODES and total / episodes >= TARGET

    def row(self, steps: int) -> dict[str, Any]:
        """Return the seconds of compiling, and the steps and the other seconds to the target, None if not reached.

        Args:
            steps: environment steps of an update.
        """
        compiling = max(self.seconds[0] - statistics.median(self.seconds[1:] or self.seconds), 0.0)
        return {
            "compile_seconds": compiling,
            "env_steps": len(self.seconds) * steps if self.reached else None,
            "seconds": sum(self.seconds) - compiling if self.reached else None,
        }


def _made(cases: Mapping[str, Case]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return a row for each case, and what was made of the cases that can be measured."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in cases}
    made: dict[str, Any] = {}
    for name, case in cases.items():
        if case.missing:
            rows[name] = {"reason": case.missing}
        else:
            _guarded(name, partial(_make, name, case, made), rows, made)
    return rows, made


def _make(name: str, case: Case, made: dict[str, Any]) -> None:
    made[name] = case.make()


def _guarded(name: str, call: Callable[[], object], rows: dict[str, dict[str, Any]], measured: dict[str, Any]) -> None:
    """Call. One package that does not work must not hide the other rows, so an error becomes the reason of its row."""
    try:
        call()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        rows[name] = {"reason": f"failed: {type(error).__name__}: {lines[0][:200]}"}
        measured.pop(name, None)


def _add_speed(
    rows: Mapping[str, dict[str, Any]],
    cases: Mapping[str, Case],
    turns: Mapping[str, tuple[int, Callable[[], object]]],
    repeats: int,
    tick: Callable[[], None],
) -> None:
    """Let the cases take turns, and add their speed to the rows."""
    measured = take_turns(turns, repeats, tick)
    for name, row in measured_as_json(measured).items():
        ours = measured.get(cases[name].ours)
        rows[name].update(row, times_ours=ours.median / row["median"] if ours else None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _show(results: dict[str, Any]) -> None:
    made = results["machine"]
    versions = ", ".join(f"{name} {made[name]}" for name in ("torch", "stable-baselines3", *PACKAGES) if made[name])
    print(f"{made['processor']}, one core, load average {made['load_average']}; {versions}")
    speed = ("steps/s", "fastest", "slowest", "speed / ours", "compile s")
    rows = [[name, *_cells(row, learner=True)] for name, row in results["learners"].items()]
    target = (f"steps to {TARGET:.2f}", f"s to {TARGET:.2f}")
    show_table("Training an agent, work of preset quick", ("learner", *speed, *target), rows)
    for name, row in results["learners"].items():
        if "reason" in row:
            print(f"{name}: {row['reason']}")
    rows = [[name, *_cells(row, learner=False)] for name, row in results["peer_environments"].items()]
    show_table(f"Environment steps per second, {BATCH} environments", ("environment", *speed), rows)
    for name, row in results["peer_environments"].items():
        if "reason" in row:
            print(f"{name}: {row['reason']}")


def _cells(row: Mapping[str, Any], *, learner: bool) -> list[str]:
    """The numbers of a row. Without numbers, the first cell says why."""
    width = 7 if learner else 5
    if "reason" in row:
        return [row["reason"].partition(":")[0], *[""] * (width - 1)]
    ratio = "" if row["times_ours"] is None else f"{row['times_ours']:.2f}"
    rates = [f"{1 / row[name]:,.0f}" for name in ("median", "fastest", "slowest")]
    cells = [*rates, ratio, f"{row['compile_seconds']:.1f}"]
    if learner:
        reached = row["env_steps"] is not None
        cells += [f"{row['env_steps']:,}", f"{row['seconds']:.1f}"] if reached else ["not reached", ""]
    return cells
