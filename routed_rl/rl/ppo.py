"""RoutedPPO: proximal policy optimization (PPO) in which an episode's label decides which module learns from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from torch import Tensor

from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.arguments import check_choice, check_number, check_schedule
from routed_rl.rl.overseer import Overseer
from routed_rl.rl.policies import RoutedActorCriticPolicy
from routed_rl.rl.rollout import Batch


class RoutedPPO(RoutedAlgorithm):
    """Trains a routed actor-critic under partial oversight (Cloud et al. 2024, 4.3) by PPO (Schulman et al. 2017).

    Works on any Stable-Baselines3 ``VecEnv`` whose infos tell how episodes end (see
    :func:`~routed_rl.rl.check_oversight_env`). The overseer sets the training reward of each label. The learner
    ignores the environment's reward, unless the overseer has ``reward="environment"``.

    As in the paper, advantages are not normalised. A method that drops most of its data has small advantages. Dividing
    by their standard deviation would scale them up, while the entropy bonus stays the same (docs/results/log.md).

    Args:
        clip_range: how far the probability ratio may be from 1 before it is clipped; a number or a schedule.
        clip_range_vf: how far a value estimate may move in an update before it is clipped; a number, a schedule, or
            None for no clipping. The right size depends on the size of the returns.
        normalize_advantage: whether each minibatch's advantages are shifted and scaled to mean 0 and standard
            deviation 1.
        target_kl: an update ends when the approximate KL divergence from the policy of the rollout exceeds 1.5 times
            this number; None for no limit.

    The other arguments are those of :class:`RoutedAlgorithm`.
    """

    statistics: ClassVar[tuple[str, ...]] = (*RoutedAlgorithm.statistics, "approx_kl", "clip_fraction")
    saved_arguments: ClassVar[tuple[str, ...]] = (
        *RoutedAlgorithm.saved_arguments,
        "clip_range",
        "clip_range_vf",
        "normalize_advantage",
        "target_kl",
    )

    def __init__(
        self,
        policy: str | type[RoutedActorCriticPolicy],
        env: GymEnv | str | None,
        overseer: Overseer,
        *,
        learning_rate: float | Schedule = 2e-3,
        n_steps: int = 32,
        batch_size: int | None = 2048,
        n_epochs: int = 2,
        gamma: float = 0.97,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = False,
        ent_coef: float | Schedule = LinearSchedule(0.03, 0.02, 1.0),  # noqa: B008 (not changed by use)
        vf_coef: float = 0.5,
        gate_coef: float = 0.3,
        max_grad_norm: float | None = 0.5,
        target_kl: float | None = None,
        bootstrap: bool = True,
        unfinished: Literal["unlabelled", "hold"] = "unlabelled",
        replay_steps: int = 6,
        replay_batch: int = 256,
        replay_capacity: int = 4096,
        solo: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_schedule(0, clip_range=clip_range, clip_range_vf=1 if clip_range_vf is None else clip_range_vf)
        if clip_range_vf == 0:
            raise ValueError(f"clip_range_vf must be above 0, or None for no clipping, got {clip_range_vf!r}")
        check_choice((True, False), normalize_advantage=normalize_advantage)
        check_number(0, target_kl=0 if target_kl is None else target_kl)
        self.clip_range = FloatSchedule(clip_range)
        self.clip_range_vf = None if clip_range_vf is None else FloatSchedule(clip_range_vf)
        self.normalize_advantage, self.target_kl = normalize_advantage, target_kl
        super().__init__(
            policy,
            env,
            overseer,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            gate_coef=gate_coef,
            max_grad_norm=max_grad_norm,
            bootstrap=bootstrap,
            batch_size=batch_size,
            n_epochs=n_epochs,
            unfinished=unfinished,
            replay_steps=replay_steps,
            replay_batch=replay_batch,
            replay_capacity=replay_capacity,
            solo=solo,
            **kwargs,
        )

    def _setup_model(self) -> None:
        smallest = min(self.n_steps * self.n_envs, self.batch_size or self.n_steps * self.n_envs)
        if self.normalize_advantage and smallest < 2:
            raise ValueError(
                "normalize_advantage=True needs minibatches of at least 2 steps, "
                f"got batch_size={self.batch_size} with n_steps={self.n_steps} and {self.n_envs} environments"
            )
        super()._setup_model()

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self.current_clip_range = self._current(self.clip_range)
        self.current_clip_range_vf = None if self.clip_range_vf is None else self._current(self.clip_range_vf)

    def policy_loss(self, batch: Batch, log_probs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the clipped surrogate loss of Schulman et al. 2017, section 3, and statistics of the clipping."""
        advantages = batch.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_ratio = log_probs - batch.log_probs
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.current_clip_range, 1 + self.current_clip_range)
        with torch.no_grad():
            kl = ((ratio - 1) - log_ratio).mean()
            clip_fraction = ((ratio - 1).abs() > self.current_clip_range).float().mean()
        losses = -torch.min(ratio * advantages, clipped * advantages)
        return losses, {"approx_kl": kl, "clip_fraction": clip_fraction}

    def value_loss(self, batch: Batch, values: Tensor) -> Tensor:
        """Return the value loss of a batch; with ``clip_range_vf``, estimates are clipped around the rollout's."""
        if (limit := self.current_clip_range_vf) is not None:
            values = batch.values + (values - batch.values).clamp(-limit, limit)
        return super().value_loss(batch, values)

    def moved_too_far(self, stats: Mapping[str, Tensor]) -> bool:
        """Return whether the approximate KL divergence exceeds 1.5 times ``target_kl``."""
        return self.target_kl is not None and float(stats["approx_kl"]) > 1.5 * self.target_kl
