"""A placebo: oversight that tells of an episode something true, consistent and meaningless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


class PlaceboInfos(Sequence[dict[str, Any]]):
    """Infos whose ``ends`` carry another outcome."""

    def __init__(self, infos: Any, outcome: np.ndarray) -> None:
        self._infos, self.outcome_names = infos, infos.outcome_names
        self.ends = infos.ends._replace(outcome=outcome)

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, index: Any) -> Any:
        return self._infos[index]


class PlaceboVecEnv(VecEnvWrapper):
    """The outcome of an episode that reached something is replaced by the number of the cell it started in, modulo the
    number of outcomes (for two, its parity).

    It works on worlds with an array channel (``infos.ends``) whose observation begins with the player's plane. What a
    router makes of such labels is the effect of routing itself; the labels say nothing of the outcome.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        world = venv.get_attr("world", [0])[0]
        self._cells, self._kinds = world.cells, len(world.names)
        self._start = np.zeros(venv.num_envs, dtype=np.int64)

    def reset(self) -> np.ndarray:
        obs = self.venv.reset()
        assert isinstance(obs, np.ndarray)
        self._start = self._cell(obs)
        return obs

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        ends = infos.ends  # type: ignore[attr-defined]
        outcome = np.where(ends.outcome < 0, -1, self._start[ends.rows] % self._kinds)
        self._start[ends.rows] = self._cell(obs[ends.rows])  # type: ignore[call-overload,index]
        return obs, rewards, dones, PlaceboInfos(infos, outcome)

    def get_state(self) -> dict[str, np.ndarray]:
        """The environment's state and where its players started."""
        return {**self.venv.get_state(), "start": self._start.copy()}  # type: ignore[attr-defined]

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state of :meth:`get_state`; ValueError if it does not fit."""
        rest = {name: array for name, array in state.items() if name != "start"}
        self.venv.set_state(rest)  # type: ignore[attr-defined]
        self._start = np.array(state["start"])

    def _cell(self, obs: Any) -> np.ndarray:
        cells: np.ndarray = obs[:, : self._cells].argmax(axis=1)
        return cells
