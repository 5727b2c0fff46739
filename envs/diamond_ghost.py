"""The Diamond/Ghost world as a Gymnasium environment and vector environment (Cloud et al. 2024, section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from routed_rl.envs.batch import Batch, EpisodeEnds
from routed_rl.envs.rendering import FPS, check_render_mode, render
from routed_rl.envs.scalar import BatchEnv, spaces
from routed_rl.envs.world import WorldOptions, make_world


class DiamondGhostEnv(BatchEnv):
    """A gridworld in which the player walks to a terminal with a reward. The player sees which terminals are overseen.

    - Observation: binary planes (player, terminals in order, oversight, walls if there are any), flattened. Reshape it
      to ``world.observation_shape``.
    - Actions: up, right, down, left.
    - Reward: the true reward of the terminal that is reached, else 0.
    - End: reaching a terminal terminates the episode; after ``max_steps`` steps it is truncated.
    - Info: at the last step of an episode ``outcome``, the terminal's name or None, and ``overseen``, a bool. At other
      steps the info is empty.
    - ``reset(seed=s)`` starts the sequence of episodes that ``s`` determines; ``reset()`` starts the next of them.

    Args:
        render_mode: None, "ansi" (text), "rgb_array" or "human" (a window).
        **options: the options of :func:`routed_rl.envs.make_world`.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> env = DiamondGhostEnv(size=3, oversight=1.0, render_mode="ansi")
        >>> obs, info = env.reset(seed=0)
        >>> obs.reshape(env.world.observation_shape).shape
        (4, 3, 3)
    """

    def __init__(self, *, render_mode: str | None = None, **options: Unpack[WorldOptions]) -> None:
        super().__init__(Batch(make_world(**options), 1, autoreset=False), render_mode)


class DiamondGhostVectorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` copies of :class:`DiamondGhostEnv` in one batch, with Gymnasium's same-step autoreset.

    Observations, rewards, ends and infos equal those of Gymnasium's ``SyncVectorEnv`` in this mode. When an episode
    ends, the step returns the first observation of the next episode. The last observation and info of the ended episode
    are in ``final_obs`` and ``final_info``.

    Args:
        num_envs: the number of environments.
        render_mode: None, "ansi" or "rgb_array". ``render()`` returns a tuple of frames.
        **options: the options of :func:`routed_rl.envs.make_world`.

    Raises:
        ValueError: for an option out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": FPS,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **options: Unpack[WorldOptions]) -> None:
        self.world = make_world(**options)
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        self._batch = Batch(self.world, num_envs)
        self.num_envs = self._batch.num_envs
        self.single_observation_space, self.single_action_space = spaces(self.world)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._names = np.array([*self.world.names, None], dtype=object)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: an integer ``s`` seeds environment ``i`` with ``s + i``; a list has one seed per environment. None, as
                the argument or in the list, starts the next episode.
            options: ``{"reset_mask": (E,) bool}`` resets only the environments where the mask is true.

        Raises:
            ValueError, TypeError: for a mask of another shape or type, or a mask that is false everywhere.
        """
        if isinstance(seed, (Sequence, np.ndarray)):
            seeds = list(seed)
        else:
            super().reset(seed=seed)
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        mask = None if options is None else options.get("reset_mask")
        if mask is not None:
            if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
                raise TypeError(f"reset_mask must be a boolean numpy array, got {mask!r}")
            if mask.shape != (self.num_envs,) or not mask.any():
                raise ValueError(f"reset_mask must have shape ({self.num_envs},) and be True somewhere, got {mask!r}")
        return self._batch.reset(seeds, self.np_random, mask), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step in every environment; see :meth:`routed_rl.envs.batch.Batch.step` for the errors."""
        obs, transition, ends = self._batch.step(actions)
        rewards = transition.reward.astype(np.float64)
        return obs, rewards, transition.terminated, transition.truncated, self._infos(ends)

    def render(self) -> tuple[Any, ...]:
        """Return one frame for each environment."""
        state = self._batch.state
        return tuple(render(self.world, state, row, self.render_mode) for row in range(self.num_envs))

    def get_state(self) -> dict[str, np.ndarray]:
        """Return the state as four int64 arrays; :meth:`set_state` restores it exactly."""
        return self._batch.get_state()

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a state that :meth:`get_state` returned; raise a ValueError if it is not one."""
        self._batch.set_state(state)

    def _infos(self, ends: EpisodeEnds) -> dict[str, Any]:
        """Return infos nested as in ``SyncVectorEnv``: every array has a mask, and no two masks share memory."""
        if not len(ends.rows):
            return {}
        final_obs, outcome = np.full((2, self.num_envs), None, dtype=object)
        final_obs[ends.rows] = np.fromiter(ends.final_obs, dtype=object, count=len(ends.rows))
        outcome[ends.rows] = self._names[ends.outcome]
        overseen, *masks = np.zeros((5, self.num_envs), dtype=bool)
        overseen[ends.rows] = ends.overseen
        for mask in masks:
            mask[ends.rows] = True
        final_info = {"outcome": outcome, "_outcome": masks[0], "overseen": overseen, "_overseen": masks[1]}
        return {
            "final_obs": final_obs,
            "_final_obs": masks[2],
            "final_info": final_info,
            "_final_info": masks[3],
        }
