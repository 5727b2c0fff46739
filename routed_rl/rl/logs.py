"""What a learner logs, besides the statistics of its updates, and where."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import explained_variance, safe_mean

from routed_rl.rl.arguments import check_number
from routed_rl.rl.environments import check_finite, check_infos, explained
from routed_rl.rl.rollout import Batch


class RoutedLogs(OnPolicyAlgorithm):
    """The log rows of :class:`~routed_rl.rl.RoutedAlgorithm`, which writes them at the end of an update."""

    _dump_after_training: bool

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Self:
        """Train for ``total_timesteps`` environment steps and return the model.

        Arguments are those of Stable-Baselines3. ``tb_log_name`` is by default the name of the class.

        Raises:
            ValueError: if the model has no environment, or if the environment breaks Gymnasium's API or observes NaN,
                or if ``total_timesteps`` is no number of at least 0.
        """
        check_number(0, total_timesteps=total_timesteps)
        if self.env is None:
            raise ValueError(
                "learn() needs an environment, but the model was loaded with env=None: call set_env(env), or load "
                "with env=…"
            )
        name = tb_log_name or type(self).__name__
        with explained(self.env):
            try:
                return super().learn(total_timesteps, callback, log_interval, name, *args, **kwargs)
            except (ValueError, RuntimeError):  # a distribution may be the first to meet a NaN
                if isinstance(self._last_obs, (np.ndarray, Mapping)):
                    check_finite(self._last_obs)
                    check_finite(self.policy.observations.arrays(self.buffer.obs.flatten(0, 1)))
                raise

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        ready = super()._setup_learn(*args, **kwargs)
        assert self.env is not None  # checked by learn()
        check_infos(self.env)
        return ready

    def dump_logs(self, iteration: int = 0) -> None:
        """Record timings and the episode statistics of a ``Monitor``. The next update writes the log row.

        So the row is complete before any checkpoint. (Stable-Baselines3 writes the row before the update.)
        """
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        steps = self.num_timesteps - self._num_timesteps_at_start
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_rew_mean", safe_mean([float(e["r"]) for e in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([float(e["l"]) for e in self.ep_info_buffer]))
        if self.ep_success_buffer:
            self.logger.record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        self.logger.record("time/fps", int(steps / elapsed))
        self.logger.record("time/time_elapsed", elapsed, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self._dump_after_training = True

    def _finish_update(self, means: Mapping[str, float], batch: Batch) -> None:
        """Count the update; log the means of its statistics, and the share of return variance that values explain."""
        self._n_updates += 1
        for name in self.statistics:
            self.logger.record(f"train/{name}", means.get(name, 0.0))
        returns, predicted = batch.returns.cpu().numpy(), batch.values.cpu().numpy()
        variance = explained_variance(predicted, returns) if len(returns) else 0.0
        self.logger.record("train/explained_variance", float(np.nan_to_num(variance)))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self._dump_after_training:
            self._dump_after_training = False
            self.logger.dump(step=self.num_timesteps)
