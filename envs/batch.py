"""``Batch``: a world, the state of E environments, and autoreset (numpy). All batched environments are built on it.

Shapes: ``E`` environments, ``D`` environments whose episode ended in this step, ``P`` observation planes, ``C`` cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from gymnasium.error import ResetNeeded

from routed_rl.envs import dynamics
from routed_rl.envs.dynamics import Transition
from routed_rl.envs.random import as_int64
from routed_rl.envs.world import ACTIONS


class Dynamics(Protocol):
    """A module with the functions of one kind of world, such as :mod:`routed_rl.envs.dynamics`."""

    SAVED: tuple[str, ...]

    def reset(self, world: Any, key: np.ndarray, episode: np.ndarray) -> Any: ...
    def step(self, world: Any, state: Any, action: np.ndarray) -> tuple[Any, Transition]: ...
    def observe(self, world: Any, state: Any) -> np.ndarray: ...
    def ended(self, world: Any, state: Any) -> np.ndarray: ...
    def restore(self, world: Any, saved: Mapping[str, np.ndarray]) -> Any: ...
    def saved_shape(self, name: str, num_envs: int) -> tuple[int, ...]: ...


class EpisodeEnds(NamedTuple):
    """The D episodes that ended in one step, in the order of their environments."""

    rows: np.ndarray  # (D,) int64: index of the environment
    outcome: np.ndarray  # (D,) int64: number of the terminal kind reached, -1 for none
    overseen: np.ndarray  # (D,) bool: whether the terminal reached was overseen
    truncated: np.ndarray  # (D,) bool: ended by the step limit, not by a terminal
    length: np.ndarray  # (D,) int64: steps of the episode
    reward: np.ndarray  # (D,) float32: reward of the last step
    final_obs: np.ndarray  # (D, P*C) float32: the episode's last observation


class Step(NamedTuple):
    """The result of one step of a :class:`Batch`."""

    obs: np.ndarray  # (E, P*C) float32, after the autoreset
    transition: Transition  # (E,) each, before the autoreset
    ends: EpisodeEnds


class Batch:
    """``num_envs`` environments of one world. The seed of an environment determines its sequence of episodes.

    Args:
        world: a world from :func:`routed_rl.envs.make_world`.
        num_envs: the number of environments, ``E``.
        autoreset: with True, the next episode starts in the same step in which an episode ends. The step then returns
            the first observation of the new episode. With False, :meth:`step` raises an error after the end.

    Raises:
        ValueError: if ``num_envs`` is not a positive integer.
    """

    rules: ClassVar[Dynamics] = dynamics
    """The dynamics of the world. Subclasses for other kinds of world replace them."""

    def __init__(self, world: Any, num_envs: int, *, autoreset: bool = True) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ValueError(f"num_envs must be a positive integer, got {num_envs!r}")
        self.world = world
        self.num_envs = int(num_envs)
        self.autoreset = autoreset
        self._state: Any = None
        self._no_ends = EpisodeEnds(
            rows=np.zeros(0, dtype=np.int64),
            outcome=np.zeros(0, dtype=np.int64),
            overseen=np.zeros(0, dtype=bool),
            truncated=np.zeros(0, dtype=bool),
            length=np.zeros(0, dtype=np.int64),
            reward=np.zeros(0, dtype=np.float32),
            final_obs=np.zeros((0, math.prod(world.observation_shape)), dtype=np.float32),
        )

    @property
    def state(self) -> Any:
        """The current state, a ``State`` of the dynamics; treat it as read-only.

        Raises:
            ResetNeeded: before the first :meth:`reset`.
        """
        if self._state is None:
            raise ResetNeeded("call reset() first: the environment has no state yet")
        return self._state

    def reset(
        self, seeds: Sequence[int | None], rng: np.random.Generator, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Start an episode in every environment, or only where ``mask`` ((E,) bool) is true.

        Args:
            seeds: E seeds. A seed starts episode 0 of this seed. None starts the environment's next episode; in the
                first reset it draws a seed from ``rng``.
            rng: the source of seeds for the first reset.
            mask: the environments to reset; None for all.

        Returns:
            The observations of all environments, (E, P*C) float32.

        Raises:
            ValueError: for a seed that is not a non-negative integer, or if there are not E seeds.
            ResetNeeded: if the first reset leaves out some environments.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"there must be one seed for each of {self.num_envs} environments, got {len(seeds)}")
        for seed in seeds:
            if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0):
                raise ValueError(f"a seed must be a non-negative integer or None, got {seed!r}")
        rows = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        first = self._state is None
        if first and len(rows) < self.num_envs:
            raise ResetNeeded("the first reset() must reset every environment, not only some")
        key = np.zeros(self.num_envs, dtype=np.int64) if first else self.state.key.copy()
        episode = np.zeros_like(key) if first else self.state.episode + 1
        for row in rows.tolist():
            seed = seeds[row]
            if seed is None and first:
                seed = int(rng.integers(2**63))
            if seed is not None:
                key[row], episode[row] = as_int64(int(seed)), 0
        fresh = self.rules.reset(self.world, key[rows], episode[rows])
        self._state = fresh if first else dynamics.put(self.state, rows, fresh)
        return self.rules.observe(self.world, self._state)

    def step(self, actions: Sequence[int] | np.ndarray) -> Step:
        """Take one step in every environment; ``actions`` are E integers in [0, 4).

        Raises:
            ValueError: for actions of another shape, type or range.
            ResetNeeded: before the first :meth:`reset`; without autoreset, also after the end of an episode.
        """
        if not self.autoreset and self.rules.ended(self.world, self.state).any():
            raise ResetNeeded("the episode has ended; call reset() before the next step()")
        state, transition = self.rules.step(self.world, self.state, self._checked(actions))
        rows = np.flatnonzero(transition.terminated | transition.truncated)
        ends = self._no_ends
        if len(rows):
            old = dynamics.take(state, rows)
            ends = EpisodeEnds(
                rows=rows,
                outcome=transition.outcome[rows],
                overseen=transition.overseen[rows],
                truncated=transition.truncated[rows],
                length=old.steps,
                reward=transition.reward[rows],
                final_obs=self.rules.observe(self.world, old),
            )
            if self.autoreset:
                fresh = self.rules.reset(self.world, old.key, old.episode + 1)
                state = dynamics.put(state, rows, fresh)
        self._state = state
        return Step(self.rules.observe(self.world, state), transition, ends)

    def get_state(self) -> dict[str, np.ndarray]:
        """Return the state as a few int64 arrays of shape (E, …); :meth:`set_state` restores it exactly."""
        return {name: getattr(self.state, name).copy() for name in self.rules.SAVED}

    def set_state(self, saved: Mapping[str, np.ndarray]) -> None:
        """Restore a state that :meth:`get_state` returned in an equal world.

        Raises:
            ValueError: if this is not such a state, or is of another number of environments or another world.
        """
        names = self.rules.SAVED
        if set(saved) != set(names):
            raise ValueError(f"a state must hold {', '.join(names)}, got {', '.join(map(str, saved)) or 'nothing'}")
        arrays = {name: np.asarray(saved[name]) for name in names}
        for name, array in arrays.items():
            shape = self.rules.saved_shape(name, self.num_envs)
            if array.dtype != np.int64 or array.shape != shape:
                raise ValueError(
                    f"a state's {name!r} must be int64 of shape {shape}, got {array.dtype} of shape {array.shape}"
                )
        restored = self.rules.restore(self.world, arrays)
        if restored is None:
            raise ValueError(
                "the state is of another world: its players or step counts are out of range; use the same options"
            )
        self._state = restored

    def _checked(self, actions: Sequence[int] | np.ndarray) -> np.ndarray:
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.num_envs} integers, one for each environment, got {array.dtype} of "
                f"shape {array.shape}: {actions!r}"
            )
        array = array.astype(np.int64, copy=False)
        # Valid actions have only the two lowest bits, so one reduction finds any action that is out of range.
        if np.bitwise_or.reduce(array) >> 2:
            row = np.flatnonzero(array >> 2)[0]
            raise ValueError(f"an action must be 0 to {len(ACTIONS) - 1}, got {array[row]} for environment {row}")
        return array
