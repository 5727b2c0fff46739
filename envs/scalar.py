"""``BatchEnv``: one environment of a batched world with Gymnasium's interface."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from routed_rl.envs.batch import Batch
from routed_rl.envs.rendering import FPS, Window, check_render_mode, render, rgb
from routed_rl.envs.world import ACTIONS


def spaces(world: Any) -> tuple[Box, Discrete]:
    """Return the observation space, Box(0, 1, (P*H*W,)), and the action space of one environment."""
    return Box(0, 1, (math.prod(world.observation_shape),), np.float32), Discrete(len(ACTIONS))


class BatchEnv(gym.Env[np.ndarray, int]):
    """The one environment of a batch without autoreset.

    Args:
        batch: a :class:`~routed_rl.envs.batch.Batch` of one environment.
        render_mode: None, "ansi" (text), "rgb_array" or "human" (a window).

    Raises:
        ValueError: for another ``render_mode``.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": FPS}

    def __init__(self, batch: Batch, render_mode: str | None) -> None:
        self.world = batch.world
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        self.observation_space, self.action_space = spaces(self.world)
        self._batch = batch
        self._window: Window | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episode 0 of the given seed; without a seed, start the next episode. ``options`` are ignored."""
        super().reset(seed=seed)
        obs = self._batch.reset([seed], self.np_random)
        self._show()
        return obs[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; see :meth:`routed_rl.envs.batch.Batch.step` for the errors."""
        obs, transition, ends = self._batch.step([action])
        self._show()
        info = {}
        if len(ends.rows):
            outcome = ends.outcome.item()
            info = {
                "outcome": None if outcome < 0 else self.world.names[outcome],
                "overseen": ends.overseen.item(),
            }
        return (
            obs[0],
            transition.reward.item(),
            transition.terminated.item(),
            transition.truncated.item(),
            info,
        )

    def render(self) -> Any:
        """Return the current state as text or as a (H, W, 3) uint8 image; in mode "human", update the window."""
        if self.render_mode == "human":
            return self._show()
        return render(self.world, self._batch.state, 0, self.render_mode)

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None

    def get_state(self) -> dict[str, np.ndarray]:
        """Return the state as a few int64 arrays; :meth:`set_state` restores it exactly."""
        return self._batch.get_state()

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a state that :meth:`get_state` returned; raise a ValueError if it is not one."""
        self._batch.set_state(state)

    def _show(self) -> None:
        if self.render_mode == "human":
            if self._window is None:
                self._window = Window(type(self).__name__, self.metadata["render_fps"])
            self._window.show(rgb(self.world, self._batch.state, 0))
