"""Known environments as environments with partial oversight: ``RECIPES``, registered as ``RoutedRL/<name>-v0``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import RepeatAction, RescaleObservation

from routed_rl.envs.partial_oversight import Ending, PartialOversight, Probability


def _won(ending: Ending) -> bool:
    return ending.reward > 0


def _lost(ending: Ending) -> bool:
    return ending.terminated and ending.reward <= 0


def _ended_left(ending: Ending, number: int) -> bool:
    return ending.terminated and ending.observation[number] < 0


def _ended_right(ending: Ending, number: int) -> bool:
    return ending.terminated and ending.observation[number] > 0


def _image(env: gym.Env[Any, Any], *, mission: bool = False) -> gym.Env[Any, Any]:
    from routed_rl.envs.symbolic import SymbolicImage  # MiniGrid is imported only where it is used

    return SymbolicImage(env, mission)


class TwoEnds(gym.Wrapper[Any, Any, Any, Any]):
    """MountainCarContinuous that ends at both ends of the track, and starts anywhere on it and in motion.

    Otherwise random actions would never reach an outcome.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options={"low": -1.1, "high": 0.4, **(options or {})})
        car = self.unwrapped
        car.state = np.array([car.state[0], self.np_random.uniform(-car.max_speed, car.max_speed)], dtype=np.float32)
        return car.state.copy(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        left = bool(observation[0] <= self.unwrapped.min_position)
        return observation, reward, terminated or left, truncated, info


def _track(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Return the environment with actions held for 4 steps, and position and speed from -1 to 1: easier to learn."""
    return RescaleObservation(RepeatAction(TwoEnds(env), 4), np.float32(-1), np.float32(1))


class OutcomeReward(gym.Wrapper[Any, Any, Any, Any]):
    """Pays the value of the outcome at an episode's last step, and 0 at all others, instead of the rewards of ``env``.

    Args:
        env: an environment with ``info["outcome"]``, as :class:`routed_rl.envs.PartialOversight` gives it.
        values: outcome → reward.
    """

    state_attributes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, env: gym.Env[Any, Any], values: Mapping[str, float]) -> None:
        super().__init__(env)
        self._values = values

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, self._values.get(info.get("outcome"), 0.0), terminated, truncated, info


@dataclass(frozen=True)
class Recipe:
    """A known environment, and how to read its outcomes.

    Attributes:
        name: its name in :data:`RECIPES`.
        base: the id of the environment that it is made from.
        values: outcome → its value to the supervisor, for ``Overseer(values)``; also the reward of its last step.
        description: one sentence.
        outcomes: outcome → predicate of the :class:`routed_rl.envs.Ending`, in the order of ``values``.
        prepare: wraps the base environment, before outcomes are read.
        options: keyword arguments of the base environment.
    """

    name: str
    base: str
    values: Mapping[str, float]
    description: str
    outcomes: Mapping[str, Callable[[Ending], bool]]
    prepare: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] = lambda env: env
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Gymnasium's id. ``make`` takes ``probability``, ``visible`` and the options of the base environment."""
        return f"RoutedRL/{self.name}-v0"


def _on_minigrid(name: str, bad: str, good: str, description: str, prepare: Any = _image) -> Recipe:
    outcomes = {bad: _lost, good: _won}
    return Recipe(name, f"minigrid:MiniGrid-{name}-v0", {bad: -1.0, good: 1.0}, description, outcomes, prepare)


def _left_or_right(name: str, base: str, number: int, description: str, **more: Any) -> Recipe:
    """Return a recipe in which the sign of one number of the last observation says how the episode ended."""
    outcomes = {"left": partial(_ended_left, number=number), "right": partial(_ended_right, number=number)}
    return Recipe(name, base, {"left": -1.0, "right": 1.0}, description, outcomes, **more)


_ALL = (
    _on_minigrid("LavaGapS5", "lava", "goal", "Pass a strip of lava through its gap, in a room of 3×3 cells."),
    _on_minigrid("LavaGapS6", "lava", "goal", "Pass a strip of lava through its gap, in a room of 4×4 cells."),
    _on_minigrid("LavaGapS7", "lava", "goal", "Pass a strip of lava through its gap, in a room of 5×5 cells."),
    _on_minigrid("DistShift1", "lava", "goal", "Walk round two strips of lava that touch each other."),
    _on_minigrid("DistShift2", "lava", "goal", "Walk between two strips of lava: DistShift1 with one strip moved."),
    _on_minigrid("LavaCrossingS9N1", "lava", "goal", "Cross one river of lava, in a room of 7×7 cells."),
    _on_minigrid("Dynamic-Obstacles-5x5", "collision", "goal", "Avoid moving balls; a wall is a collision too."),
    _on_minigrid(
        "Fetch-5x5-N2", "other", "wanted", "Pick up the wanted one of two objects.", partial(_image, mission=True)
    ),
    _left_or_right("CartPole", "CartPole-v1", 2, "Let the pole fall: it leans left or right when the episode ends."),
    _left_or_right(
        "MountainCarContinuous",
        "MountainCarContinuous-v0",
        0,
        "Drive to the left end of the track, or up to the goal on the right, which is harder.",
        prepare=_track,
        options={"max_episode_steps": 200},
    ),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})
"""Name → recipe. ``gymnasium.make(recipe.id, probability=0.1)`` makes its environment."""


def make_recipe(
    name: str, *, probability: Probability = 0.1, visible: bool = False, **options: Any
) -> gym.Env[Any, Any]:
    """Return the environment of the recipe with this name; :func:`gymnasium.make` calls this.

    Args:
        name: a name in :data:`RECIPES`.
        probability, visible: as for :class:`routed_rl.envs.PartialOversight`.
        **options: keyword arguments of the base environment.

    Raises:
        ValueError: for a ``probability`` or ``visible`` that ``PartialOversight`` refuses.
    """
    recipe = RECIPES[name]
    base = gym.make(recipe.base, disable_env_checker=True, **{**recipe.options, **options})
    env = PartialOversight(recipe.prepare(base), recipe.outcomes, probability=probability, visible=visible)
    return OutcomeReward(env, recipe.values)
