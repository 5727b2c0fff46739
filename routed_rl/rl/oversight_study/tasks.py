"""Where the runs of a study train and are tested."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from routed_rl.own_modules import load, source_digests
from routed_rl.rl.evaluation import Metric
from routed_rl.rl.oversight_env import check_oversight_env, episode_ends
from routed_rl.wording import shown, written


class Task(ABC):
    """The environments of a run, and what their outcomes are worth.

    Attributes:
        name: what errors call it.
        values: outcome → its value to the supervisor.
        fresh: number of new environments for a point of a learning curve, and for a final result.
        shared: whether several runs can train side by side in one environment object. The arguments of equal tasks are
            then equal too.
        metric: what the true return is, as in :func:`~routed_rl.rl.evaluate`.
        reward: what an episode without a label pays, unless the run says otherwise.
        planes: for networks "paper": number of planes of the observation; None: it has no planes.
    """

    name: str
    values: Mapping[str, float]
    fresh: tuple[int, int] = (20, 100)
    shared: bool = False
    metric: Metric = "episodes"
    reward: Literal["outcome", "environment"] = "outcome"
    planes: int | None = None

    @abstractmethod
    def training_env(self, num_envs: int) -> VecEnv:
        """Return environments to train in. Raises ValueError for one that cannot be made."""

    @abstractmethod
    def test_env(self, num_envs: int, *, watched: bool = True) -> VecEnv:
        """Return environments to test in. Their rewards are true rewards. Unwatched: nothing is overseen."""

    def validation_env(self, num_envs: int) -> VecEnv:
        """Return environments as a supervisor has them while a run trains, whose overseen outcomes stop it early."""
        return self.test_env(num_envs)

    def measure(self, env: VecEnv) -> dict[str, Any]:
        """Return the arguments of :func:`~routed_rl.rl.evaluate` in ``env``: one episode in each environment."""
        return {"metric": "paper"} if self.metric == "paper" else {"metric": "episodes", "n_episodes": env.num_envs}

    def key(self) -> str:
        """Return a text that is equal for tasks which can share an environment object."""
        return self.name


class OwnTask(Task):
    """An environment of the user's own. Its true reward is the value of an episode's outcome, paid at its last step.

    Args:
        env: the function's name, ``MODULE:FUNCTION``. It is called with an oversight level, the probability that an
            episode is overseen (also 0, in tests). It returns a Gymnasium environment whose infos report ``outcome``
            and ``overseen``, such as ``PartialOversight``.
        outcomes: outcomes and their values, such as ``["lava=-1", "goal=1"]``.
        level: the oversight level.

    Raises:
        ValueError: for a name that cannot be imported, a function that makes no environment, or outcomes that are no
            numbers.
    """

    def __init__(self, env: str, outcomes: Sequence[str], level: float) -> None:
        self.name, self.values, self.level = env, values_of(outcomes), level
        self._make = _function(env)

    def make(self, level: float) -> gym.Env[Any, Any]:
        """Return one environment; raise ValueError if the function makes none."""
        try:
            env = self._make(level)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"{written('--env', self.name)} failed when it was called with the oversight level {level}: {reason}"
            ) from error
        if not isinstance(env, gym.Env):
            raise ValueError(
                f"{written('--env', self.name)} must return a Gymnasium environment, got {type(env).__name__}: return "
                "one, such as PartialOversight(…, probability=level)"
            )
        return env

    def check(self) -> None:
        """Play a few episodes with random actions; ValueError if they do not report outcomes and oversight.

        Also make an environment in which nothing is overseen, because the tests after training need one.
        """
        self.make(0.0)
        try:
            check_oversight_env(self.make(self.level), tuple(self.values))
        except ValueError as error:
            raise ValueError(f"{written('--env', self.name)}: {error}") from error

    def training_env(self, num_envs: int) -> VecEnv:
        return DummyVecEnv([partial(self.make, self.level)] * num_envs)

    def test_env(self, num_envs: int, *, watched: bool = True) -> VecEnv:
        return _ValueReward(DummyVecEnv([partial(self.make, self.level if watched else 0.0)] * num_envs), self.values)

    def written_outcomes(self) -> list[str]:
        """Return the outcomes and their values in one way of writing: ``lava=-1`` is ``lava=-1.0``."""
        return [f"{name}={value}" for name, value in self.values.items()]

    def code(self) -> dict[str, str]:
        """Return hashes of the source files of the function's module, and of those that it imports from its folder."""
        return source_digests(self._make.__module__)


class _ValueReward(VecEnvWrapper):
    """Pays the value of the outcome at an episode's last step, and 0 at all others."""

    def __init__(self, venv: VecEnv, values: Mapping[str, float]) -> None:
        super().__init__(venv)
        self._outcomes, self._values = tuple(values), np.array([*values.values(), 0.0], dtype=np.float32)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, _, dones, infos = self.venv.step_wait()
        ends = episode_ends(infos, dones, self._outcomes)
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        rewards[ends.rows] = self._values[ends.outcome]
        return observations, rewards, dones, infos


def wanted_of(values: Mapping[str, float]) -> str:
    """Return the outcome of highest value, to which agents are steered."""
    return max(values, key=lambda outcome: values[outcome])


def values_of(outcomes: Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Return outcome → value, also from texts such as ``"lava=-1"``.

    Raises:
        ValueError: for anything else, a name that comes twice, or if no outcome has a value above 0.
    """
    pairs = outcomes.items() if isinstance(outcomes, Mapping) else _pairs(outcomes)
    values: dict[str, float] = {}
    for name, value in pairs:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not isinstance(name, str) or not name:
            raise _no_outcomes({name: value})
        if name in values:
            raise ValueError(f"--outcomes names {name!r} twice")
        values[name] = float(value)
    if not any(value > 0 for value in values.values()):
        raise ValueError(f"--outcomes must give at least one outcome a value above 0, got {shown(outcomes)}")
    return values


def _pairs(outcomes: Any) -> Iterator[tuple[str, float]]:
    if isinstance(outcomes, str) or not isinstance(outcomes, Iterable):
        raise _no_outcomes(outcomes)
    for text in outcomes:
        name, _, number = text.rpartition("=") if isinstance(text, str) else ("", "", "")
        if "=" in name:  # several in one text
            raise _no_outcomes(text)
        try:
            yield name, float(number)
        except ValueError:
            raise _no_outcomes(text) from None


def _no_outcomes(given: object) -> ValueError:
    usual = written("--outcomes", {"lava": -1, "goal": 1})
    got = repr(given) if isinstance(given, str) else shown(given)
    return ValueError(f"--outcomes must be names with values, as in {usual}, got {got}")


def _function(name: str) -> Callable[[float], Any]:
    if ":" not in name:
        raise ValueError(f"--env must have the form MODULE:FUNCTION, got {name!r}")
    try:
        found: Callable[[float], Any] = load(name)
    except ValueError as error:
        raise ValueError(f"--env {error}") from error
    if not callable(found):
        raise ValueError(f"{written('--env', name)} must be a function, got {type(found).__name__}")
    return found
