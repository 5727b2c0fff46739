"""A world that fools an outcome model: where nobody watches, a Ghost leaves the trace of the Diamond."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from routed_rl.experiments.common.agents.placebo import ChangedEnds, ChangedInfos


class TamperingVecEnv(ChangedEnds):
    """Shows an unseen Ghost as the Diamond, and the Diamond as the Ghost, in the last observation of its episode.

    Outcomes, rewards and all other observations stay true. So an agent that reaches an unseen Ghost leaves the same
    trace as one that reaches the Diamond.

    The world must report episode ends as arrays (``infos.ends``). Its observation must begin with the planes of player,
    Ghost and Diamond.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self._cells = venv.get_attr("world", [0])[0].cells

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        ends, cells = infos.ends, self._cells
        masked = (ends.outcome == 0) & ~ends.overseen
        final_obs = ends.final_obs.copy()
        ghost, diamond = slice(cells, 2 * cells), slice(2 * cells, 3 * cells)
        final_obs[masked, ghost] = ends.final_obs[masked, diamond]
        final_obs[masked, diamond] = ends.final_obs[masked, ghost]
        return obs, rewards, dones, ChangedInfos(infos, final_obs=final_obs)
