"""RoutedPPO: proximal policy optimisation in which an episode's label decides which module it teaches."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import explained_variance
from torch import Tensor
from torch.nn import functional as F

from routed_rl.rl.algorithm import RoutedAlgorithm, check_range
from routed_rl.rl.overseer import Overseer
from routed_rl.rl.policies import RoutedActorCriticPolicy
from routed_rl.rl.rollout import Batch


class RoutedPPO(RoutedAlgorithm):
    """Routed actor-critic under partial oversight (Cloud et al. 2024, section 4.3), by PPO (Schulman et al. 2017).

    Works on any Stable-Baselines3 ``VecEnv`` whose infos say how episodes end (see
    :func:`~routed_rl.rl.check_oversight_env`). The environment's reward is not used: the
    overseer's table pays the learner.

    Advantages are not normalised, as in the paper: dividing by their spread would scale up the faint signal of a
    method that drops most of its data, against an entropy bonus that stays the same (see docs/log.md).

    Args:
        batch_size: steps per gradient step.
        n_epochs: passes over each rollout.
        clip_range: clipping of the probability ratio.

    The remaining arguments are those of :class:`RoutedAlgorithm`.
    """

    saved_arguments: ClassVar[tuple[str, ...]] = (
        *RoutedAlgorithm.saved_arguments,
        "batch_size",
        "n_epochs",
        "clip_range",
    )

    def __init__(
        self,
        policy: str | type[RoutedActorCriticPolicy],
        env: GymEnv | str | None,
        overseer: Overseer,
        *,
        learning_rate: float | Schedule = 2e-3,
        n_steps: int = 32,
        batch_size: int = 2048,
        n_epochs: int = 2,
        gamma: float = 0.97,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        ent_coef: float | Schedule = 0.02,
        vf_coef: float = 0.5,
        gate_coef: float = 0.3,
        max_grad_norm: float = 0.5,
        unfinished: Literal["unlabelled", "hold"] = "unlabelled",
        replay_steps: int = 6,
        replay_batch: int = 256,
        replay_capacity: int = 4096,
        **kwargs: Any,
    ) -> None:
        check_range(1, batch_size=batch_size, n_epochs=n_epochs)
        check_range(0, clip_range=clip_range)
        self.batch_size, self.n_epochs, self.clip_range = batch_size, n_epochs, clip_range
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
            unfinished=unfinished,
            replay_steps=replay_steps,
            replay_batch=replay_batch,
            replay_capacity=replay_capacity,
            **kwargs,
        )

    def train(self) -> None:
        """Learn from the steps whose labels have arrived, then replay labelled ones."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        with torch.no_grad():
            last_values = self.policy.predict_values(torch.as_tensor(self._last_obs, device=self.device)).flatten()
        batch = self.buffer.finish_rollout(last_values, self.overseer.not_reached, self.gamma, self.gae_lambda)
        generator = torch.Generator().manual_seed(self._rng("minibatches"))

        n_minibatches = max(1, round(len(batch.labels) / self.batch_size))
        stats: list[Tensor] = []
        for _ in range(self.n_epochs if len(batch.labels) else 0):
            for index in torch.randperm(len(batch.labels), generator=generator).tensor_split(n_minibatches):
                stats.append(self._learn(Batch(*(tensor[index] for tensor in batch))))
        if self._replays:
            self.replay.add(batch)
            for _ in range(self.replay_steps):
                self._learn_replayed(generator)

        self._n_updates += 1
        names = ("policy_loss", "value_loss", "entropy", "gate_loss", "approx_kl", "clip_fraction")
        for name, value in zip(
            names, torch.stack(stats).mean(0).tolist() if stats else [0.0] * len(names), strict=True
        ):
            self.logger.record(f"train/{name}", value)
        variance = explained_variance((batch.returns - batch.advantages).cpu().numpy(), batch.returns.cpu().numpy())
        self.logger.record("train/explained_variance", float(np.nan_to_num(variance)))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self._dump_after_training:
            self._dump_after_training = False
            self.logger.dump(step=self.num_timesteps)

    def _learn(self, batch: Batch) -> Tensor:
        """One gradient step for samples of every label; returns the six logged statistics."""
        routes = self.overseer.route_weights(batch.labels)
        weights = self.overseer.loss_weights.to(self.device)[batch.labels]
        labelled = self.overseer.is_labelled(batch.labels)
        values, log_probs, entropy, gate_logits = self.policy.evaluate_routed(batch.obs, batch.actions, routes)
        log_ratio = log_probs - batch.log_probs
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        # Masked sums over counts of at least 1: a label without samples contributes 0, never 0 / 0.
        policy_loss = -(weights * torch.min(ratio * batch.advantages, clipped * batch.advantages)).mean()
        value_loss = F.mse_loss(values, batch.returns)
        taught = (routes != 0).any(dim=0)
        gate_loss = torch.zeros_like(value_loss)
        if gate_logits is not None and not self._replays:
            taught[-1] |= labelled.any()
            targets = torch.where(labelled, batch.labels, 0)
            cross_entropy = F.cross_entropy(gate_logits, targets, reduction="none")
            gate_loss = (labelled * cross_entropy).sum() / labelled.sum().clamp(min=1)
        loss = (
            policy_loss
            + self.vf_coef * value_loss
            - self.entropy_schedule(self._current_progress_remaining) * entropy.mean()
            + self.gate_coef * gate_loss
        )
        self._step(loss, [n for n, on in zip(self.overseer.routes.modules, taught.tolist(), strict=True) if not on])
        with torch.no_grad():
            kl = ((ratio - 1) - log_ratio).mean()
            clip_fraction = ((ratio - 1).abs() > self.clip_range).float().mean()
            return torch.stack([policy_loss, value_loss, entropy.mean(), gate_loss, kl, clip_fraction])
