"""``PartialOversight``: any Gymnasium environment becomes one with partial oversight.

Letters in shapes: ``E`` environments, ``F`` flags: one per outcome where each has its own probability, else one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from routed_rl.envs.random import as_int64, bernoulli, bits, episode_stream, threshold
from routed_rl.envs.world import as_probability

KEY = "oversight"
"""The key of the flags in a Dict observation."""

_FIRST_DRAW = 2**32  # Far from the draws of this project's worlds, which hash the same seeds.


class Ending(NamedTuple):
    """The end of an episode, as predicates and functions of :class:`PartialOversight` see it."""

    observation: Any
    """the last observation, without the flags of ``visible``"""
    action: Any
    """the last action"""
    reward: float
    """reward of the last step"""
    episode_return: float
    """sum of all rewards, not discounted"""
    length: int
    """number of steps"""
    terminated: bool
    """whether the environment ended the episode"""
    truncated: bool
    """whether a step limit cut the episode, which was not terminated"""
    info: dict[str, Any]
    """info of the last step"""


Outcome = Mapping[str, Callable[[Ending], Any]] | Callable[[Ending], str | None]
Probability = float | Mapping[str, float] | Callable[[Ending], float]


class EpisodeOversight:
    """Names the outcomes of the episodes of ``num_envs`` environments, and draws which episodes are overseen.

    A draw is a hash of (seed, episode), so it does not depend on the environment's own random numbers.

    Args:
        num_envs: the number of environments, ``E``.
        space: the observation space of one environment.

    The other arguments, and the errors, are those of :class:`PartialOversight`.

    Attributes:
        outcomes: the names of the outcomes.
        observation_space: ``space``, with flags if they are visible.
        state_attributes: the attributes on which later steps depend, int64 or float64 of shape (E,).
    """

    state_attributes: ClassVar[tuple[str, ...]] = ("key", "episode", "length", "episode_return")

    def __init__(
        self,
        num_envs: int,
        space: spaces.Space[Any],
        outcome: Outcome,
        outcomes: Sequence[str] | None,
        probability: Probability,
        visible: bool,
    ) -> None:
        self._name = _first_true(outcome) if isinstance(outcome, Mapping) else outcome
        self.outcomes = _names(outcome, outcomes)
        self._probability = probability
        self._limits = _limits(probability, self.outcomes)
        if visible and callable(probability):
            raise ValueError(
                f"oversight cannot be visible where probability is a function, got {probability!r}: it is known only "
                "at the end of an episode; use visible=False, or one number or one per outcome"
            )
        self._space, self._visible = space, visible
        self.observation_space = _with_flags(space, len(self._limits)) if visible else space
        self.key = np.random.default_rng().integers(2**63, size=num_envs)
        self.episode = np.full(num_envs, -1)
        self.length = np.zeros(num_envs, dtype=np.int64)
        self.episode_return = np.zeros(num_envs)

    def start(self, rows: Iterable[int], seeds: Iterable[int | None]) -> None:
        """Start an episode in these environments: episode 0 of a seed, or the next one where the seed is None."""
        for row, seed in zip(rows, seeds, strict=True):
            self.episode[row] += 1
            if seed is not None:
                self.key[row], self.episode[row] = as_int64(seed), 0
            self.length[row] = self.episode_return[row] = 0

    def count(self, rewards: np.ndarray | float) -> None:
        """Add a step with these rewards, (E,), to the running episodes."""
        self.length += 1
        self.episode_return += rewards

    def end(
        self, row: int, observation: Any, action: Any, reward: Any, cut: bool, info: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the info of the last step of an episode, with ``outcome`` and ``overseen``."""
        ending = Ending(
            observation=observation,
            action=action,
            reward=float(reward),
            episode_return=self.episode_return[row].item(),
            length=self.length[row].item(),
            terminated=not cut,
            truncated=cut,
            info=info,
        )
        name = self._name(ending)
        if name is not None and not (isinstance(name, str) and name in self.outcomes):
            raise ValueError(f"the function outcome must return one of {list(self.outcomes)} or None, got {name!r}")
        return {**info, "outcome": name, "overseen": name is not None and self._overseen(row, name, ending)}

    def _overseen(self, row: int, name: str, ending: Ending) -> bool:
        limits = self._limits
        if callable(self._probability):
            limits = np.array([threshold(as_probability("what probability returns", self._probability(ending)))])
        drawn = self._flags([row], limits)[0]
        return bool(drawn[self.outcomes.index(name) if len(drawn) > 1 else 0])

    def _flags(self, rows: Any, limits: np.ndarray) -> np.ndarray:
        """Return what is overseen in the running episodes of these environments, (…, F) bool."""
        stream = episode_stream(self.key[rows], self.episode[rows])
        flags: np.ndarray = bernoulli(bits(stream[..., None], _FIRST_DRAW + np.arange(len(limits))), limits)
        return flags

    def show(self, observation: Any, row: int | None = None) -> Any:
        """Return the observation of one environment, or the observations of all, with flags if they are visible."""
        if not self._visible:
            return observation
        flags = self._flags(slice(None) if row is None else [row], self._limits)
        return _add_flags(self._space, observation, flags if row is None else flags[0])


def _first_true(predicates: Mapping[str, Callable[[Ending], Any]]) -> Callable[[Ending], str | None]:
    return lambda ending: next((name for name, holds in predicates.items() if holds(ending)), None)


def _names(outcome: Outcome, outcomes: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(outcome, Mapping):
        if outcomes is not None:
            raise ValueError(f"outcomes is only for a function; {list(outcome)} are named already, got {outcomes!r}")
        for name, holds in outcome.items():
            if not callable(holds):
                raise ValueError(f"the predicate of outcome {name!r} must be a function of the Ending, got {holds!r}")
        outcomes = tuple(outcome)
    elif not callable(outcome):
        raise ValueError(f"outcome must be a mapping of names to predicates or one function, got {outcome!r}")
    if isinstance(outcomes, str) or not outcomes:
        raise ValueError(f"there must be at least one outcome: give a list of names as outcomes=, got {outcomes!r}")
    if not all(isinstance(name, str) and name for name in outcomes) or len(set(outcomes)) < len(outcomes):
        raise ValueError(f"the names of outcomes must be different, non-empty strings, got {list(outcomes)}")
    return tuple(outcomes)


def _limits(probability: Probability, outcomes: tuple[str, ...]) -> np.ndarray:
    """Return the threshold of each draw, (F,) int64; of no meaning where the probability is a function."""
    if callable(probability):
        return np.zeros(1, dtype=np.int64)
    if not isinstance(probability, Mapping):
        return np.array([threshold(as_probability("probability", probability))])
    if set(probability) != set(outcomes):
        raise ValueError(f"probability must name exactly the outcomes {list(outcomes)}, got {list(probability)}")
    return np.array([threshold(as_probability(f"probability of {name!r}", probability[name])) for name in outcomes])


def _with_flags(space: spaces.Space[Any], count: int) -> spaces.Space[Any]:
    if isinstance(space, spaces.Dict) and KEY not in space.spaces:
        return spaces.Dict({**space.spaces, KEY: spaces.Box(0, 1, (count,), np.float32)})
    if isinstance(space, spaces.Box) and len(space.shape) in (1, 3):
        low, high = (_add_flags(space, space.low, np.zeros(count)), _add_flags(space, space.high, np.ones(count)))
        return spaces.Box(low, high, dtype=space.dtype.type)
    raise ValueError(
        f"oversight can be visible in a Box of one axis, an image Box of three axes or a Dict without a key {KEY!r}, "
        f"got {space}: use visible=False, or a wrapper such as FlattenObservation first"
    )


def _add_flags(space: spaces.Space[Any], observation: Any, flags: np.ndarray) -> Any:
    """Return observations (…, *shape of the space) with flags (…, F)."""
    if isinstance(space, spaces.Dict):
        return {**observation, KEY: flags.astype(np.float32)}
    assert isinstance(space, spaces.Box)
    axis = -1
    if len(space.shape) == 3:
        axis = -3 if space.shape[0] < min(space.shape[1:]) else -1
        flags = np.expand_dims(flags, (-2, -1) if axis == -3 else (-3, -2))
        shape = list(observation.shape)
        shape[axis] = flags.shape[axis]
        flags = np.broadcast_to(flags, shape) * _white(space)
    return np.concatenate([observation, flags.astype(space.dtype)], axis=axis)


def _white(space: spaces.Box) -> int:
    """Return 255 for pictures, whose numbers learners divide by 255; else 1."""
    return 255 if space.dtype == np.uint8 and (space.high == 255).all() else 1


class PartialOversight(gym.Wrapper[Any, Any, Any, Any]):
    """Reports how each episode ends and whether that was overseen, as learners under partial oversight need it.

    The info of an episode's last step gets ``outcome``, one of the names or None, and ``overseen``, a bool. An episode
    without outcome is never overseen. Rewards stay as they are.

    ``reset(seed=s)`` starts the sequence of draws that ``s`` determines. The draws do not depend on the random numbers
    of ``env``.

    Args:
        env: any environment. To give episodes that ``TimeLimit`` cuts an outcome too, put ``TimeLimit`` inside.
        outcome: name → predicate of the :class:`Ending`. The first true predicate names the outcome. If all are false,
            the outcome is None. Or one function of the :class:`Ending` that returns a name or None.
        outcomes: the names that the function can return; only for a function.
        probability: the probability that an episode is overseen. One number: one draw for each episode. Outcome →
            number: one draw for each outcome and episode. Or a function of the :class:`Ending` that returns a number.
        visible: whether the observation shows from the start what would be overseen in this episode: one flag, or with
            a mapping one per outcome. A flat Box gets further numbers, an image Box further constant planes, a Dict the
            key ``"oversight"``. An image's channels are its first axis if that is the shortest, else its last. A flag
            is 0 or 1; in pictures (uint8 up to 255) 0 or 255.

    Attributes:
        outcomes: the names of the outcomes.

    Raises:
        ValueError: for an argument out of range, ``visible`` with a function as ``probability`` or an observation space
            that cannot show flags, and at the end of an episode if a function returns something else.

    Example:
        >>> ends = {"left": lambda end: end.observation[2] < 0, "right": lambda end: end.observation[2] > 0}
        >>> env = PartialOversight(gym.make("CartPole-v1"), ends, probability={"left": 1, "right": 0}, visible=True)
        >>> obs, info = env.reset(seed=0)
        >>> obs.shape, obs[4:].tolist()
        ((6,), [1.0, 0.0])
    """

    state_attributes: ClassVar[tuple[str, ...]] = ("_oversight",)
    """attributes on which later steps depend; a checkpoint holds them"""

    def __init__(
        self,
        env: gym.Env[Any, Any],
        outcome: Outcome,
        *,
        outcomes: Sequence[str] | None = None,
        probability: Probability = 0.1,
        visible: bool = False,
    ) -> None:
        if not isinstance(env, gym.Env):
            use = ": use PartialOversightVecEnv" if hasattr(env, "num_envs") else ""
            raise ValueError(f"env must be a Gymnasium environment, got {env!r}{use}")
        super().__init__(env)
        self._oversight = EpisodeOversight(1, env.observation_space, outcome, outcomes, probability, visible)
        self.outcomes = self._oversight.outcomes
        self.observation_space = self._oversight.observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; with a seed, the first of its sequence of draws."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._oversight.start([0], [seed])
        return self._oversight.show(observation, 0), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step. At the end of an episode, the info has ``outcome`` and ``overseen``."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._oversight.count(float(reward))
        if terminated or truncated:
            info = self._oversight.end(0, observation, action, reward, not terminated, info)
        return self._oversight.show(observation, 0), reward, terminated, truncated, info
