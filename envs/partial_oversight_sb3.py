"""``PartialOversightVecEnv``: partial oversight for a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from routed_rl.envs.partial_oversight import EpisodeOversight, Outcome, Probability


class PartialOversightVecEnv(VecEnvWrapper):
    """:class:`routed_rl.envs.PartialOversight` for a Stable-Baselines3 ``VecEnv``.

    Seeds, draws, infos, arguments and errors are the same: row ``i`` after ``seed(s)`` is a ``PartialOversight`` after
    ``reset(seed=s + i)``. Only rewards are as exact as those of ``venv``, often float32.

    Attributes:
        outcomes: the names of the outcomes.
    """

    state_attributes: ClassVar[tuple[str, ...]] = ("_oversight",)
    """attributes on which later steps depend; a checkpoint holds them"""

    def __init__(
        self,
        venv: VecEnv,
        outcome: Outcome,
        *,
        outcomes: Sequence[str] | None = None,
        probability: Probability = 0.1,
        visible: bool = False,
    ) -> None:
        if not isinstance(venv, VecEnv):
            use = ": use PartialOversight" if isinstance(venv, gym.Env) else ""
            raise ValueError(f"venv must be a VecEnv of Stable-Baselines3, got {venv!r}{use}")
        self._oversight = EpisodeOversight(
            venv.num_envs, venv.observation_space, outcome, outcomes, probability, visible
        )
        self.outcomes = self._oversight.outcomes
        super().__init__(venv, self._oversight.observation_space)

    def reset(self) -> Any:
        seeds = list(self.venv.unwrapped._seeds)  # the environment's own reset clears them
        observations = self.venv.reset()
        self._oversight.start(range(self.num_envs), seeds)
        return self._oversight.show(observations)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions
        super().step_async(actions)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return observations, rewards, dones, and infos with ``outcome`` and ``overseen`` where an episode ended."""
        observations, rewards, dones, infos = self.venv.step_wait()
        oversight, infos = self._oversight, list(infos)
        oversight.count(rewards)
        ended = np.flatnonzero(dones).tolist()
        for row in ended:
            last, cut = infos[row]["terminal_observation"], bool(infos[row].get("TimeLimit.truncated", False))
            info = oversight.end(row, last, self._actions[row], rewards[row], cut, infos[row])
            infos[row] = {**info, "terminal_observation": oversight.show(last, row)}
        oversight.start(ended, [None] * len(ended))
        return oversight.show(observations), rewards, dones, infos
