"""The latest rollout as Stable-Baselines3's callbacks read it: ``model.rollout_buffer``."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.preprocessing import get_obs_shape


class RolloutView:
    """Arrays of the latest rollout, ``T`` steps of ``E`` environments, under Stable-Baselines3's names.

    They are copies, made when they are read. There are no advantages and returns: they follow when an update knows the
    labels.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.buffer_size, self.n_envs = model.n_steps, model.n_envs  # T and E

    @property
    def observations(self) -> Any:
        """``(T, E, …)``, or a dict of such arrays."""
        model, steps = self._model, (self.buffer_size, self.n_envs)
        flat = model.policy.observations.arrays(model.buffer.tensors()["obs"].flatten(0, 1).clone())
        shapes: Any = get_obs_shape(model.observation_space)
        if isinstance(flat, dict):
            return {name: part.reshape(*steps, *shapes[name]) for name, part in flat.items()}
        return flat.reshape(*steps, *shapes)

    @property
    def actions(self) -> np.ndarray:
        """``(T, E, A)``, as the policy drew them: not yet clipped or unscaled."""
        return self._array("actions").reshape(self.buffer_size, self.n_envs, -1)

    @property
    def rewards(self) -> np.ndarray:
        """``(T, E)`` training rewards, by the labels of the episodes."""
        return self._array("rewards")

    @property
    def values(self) -> np.ndarray:
        """``(T, E)`` value estimates."""
        return self._array("values")

    @property
    def log_probs(self) -> np.ndarray:
        """``(T, E)`` log-probabilities of the actions."""
        return self._array("log_probs")

    @property
    def episode_starts(self) -> np.ndarray:
        """``(T, E)``: 1 where a step is the first of its episode."""
        before = self._model.buffer.ended[self.buffer_size - 1 : -1]
        return before.cpu().numpy().astype(np.float32)

    def _array(self, name: str) -> np.ndarray:
        array: np.ndarray = self._model.buffer.tensors()[name].cpu().numpy().copy()
        return array
