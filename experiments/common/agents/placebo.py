"""A placebo for oversight: labels that are true and consistent, but say nothing about the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


class ChangedInfos(Sequence[dict[str, Any]]):
    """The infos of a step, with other arrays in ``ends``."""

    def __init__(self, infos: Any, **arrays: np.ndarray) -> None:
        self._infos, self.outcome_names = infos, infos.outcome_names
        self.ends = infos.ends._replace(**arrays)

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, index: Any) -> Any:
        return self._infos[index]


class ChangedEnds(VecEnvWrapper):
    """The base of wrappers that change only what is told of the ends of episodes (``infos.ends``)."""

    def reset(self) -> np.ndarray:
        obs = self.venv.reset()
        assert isinstance(obs, np.ndarray)
        return obs

    def get_state(self) -> dict[str, np.ndarray]:
        """The state of the environment."""
        state: dict[str, np.ndarray] = self.venv.get_state()
        return state

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a state of :meth:`get_state`. Raises ValueError if the state does not fit."""
        self.venv.set_state(state)


class PlaceboVecEnv(ChangedEnds):
    """Replaces the outcome of an episode by the number of its start cell modulo the number of outcomes.

    With two outcomes this is the parity of the start cell. An episode that reaches no terminal state stays unchanged.
    These labels say nothing about the outcome. So they show the effect of routing itself.

    The world must report episode ends as arrays (``infos.ends``). Its observation must begin with the player's plane.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        world = venv.get_attr("world", [0])[0]
        self._cells, self._kinds = world.cells, len(world.names)
        self._start = np.zeros(venv.num_envs, dtype=np.int64)

    def reset(self) -> np.ndarray:
        obs = super().reset()
        self._start = self._cell(obs)
        return obs

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        ends = infos.ends
        outcome = np.where(ends.outcome < 0, -1, self._start[ends.rows] % self._kinds)
        self._start[ends.rows] = self._cell(obs[ends.rows])
        return obs, rewards, dones, ChangedInfos(infos, outcome=outcome)

    def get_state(self) -> dict[str, np.ndarray]:
        """The state of the environment and the start cells of its players."""
        return {**super().get_state(), "start": self._start.copy()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a state of :meth:`get_state`. Raises ValueError if the state does not fit."""
        super().set_state({name: array for name, array in state.items() if name != "start"})
        self._start = np.array(state["start"])

    def _cell(self, obs: Any) -> np.ndarray:
        cells: np.ndarray = obs[:, : self._cells].argmax(axis=1)
        return cells
