"""The losses of routed agents: one for the steps of a rollout, one for replayed steps.

Shapes: ``N`` steps, ``M`` modules.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor
from torch.nn import functional as F

from routed_rl.rl.rollout import Batch, Replayed


class RoutedLosses(OnPolicyAlgorithm):
    """The losses of :class:`~routed_rl.rl.RoutedAlgorithm`, which sets every attribute that they read.

    Subclasses implement :meth:`policy_loss`.
    """

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self.current_ent_coef = self._current(self.entropy_schedule)

    def _current(self, schedule: FloatSchedule) -> Tensor:
        """Return the value of a schedule, a scalar. As a float, it would be a constant of the compiled losses."""
        return torch.tensor(schedule(self._current_progress_remaining), device=self.device)

    def policy_loss(self, batch: Batch, log_probs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy loss of each step, and further statistics.

        Args:
            batch: ``N`` steps.
            log_probs: ``(N,)`` log-probabilities of the actions under the current policy.

        Returns:
            ``(N,)`` losses, which :meth:`loss` weights by label, and scalars to log, named as in ``statistics``.
        """
        raise NotImplementedError

    def value_loss(self, batch: Batch, values: Tensor) -> Tensor:
        """Return the value loss of a batch, a scalar; ``values`` ``(N,)`` are the current estimates."""
        return F.mse_loss(values, batch.returns)

    def moved_too_far(self, stats: Mapping[str, Tensor]) -> bool:
        """Return whether this update must end, given the statistics that :meth:`loss` returned; never by default."""
        return False

    def loss(self, batch: Batch, ent_coef: Tensor | float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the loss of a batch from the rollout, with any labels.

        Args:
            batch: ``N`` steps.
            ent_coef: current weight of the entropy bonus.

        Returns:
            The loss, a scalar. Then ``(M + 1,)`` booleans: true for each module that this loss trains; the last
            entry is the gate. Then scalars to log.
        """
        labelled, key = self.overseer.is_labelled(batch.labels), (batch.labels, batch.players)
        routes, players = self._table.routes[key], batch.players if self.solo_envs else None
        values, log_probs, entropy, gate_logits = self.policy.evaluate_routed(batch.obs, batch.actions, routes, players)
        losses, details = self.policy_loss(batch, log_probs)
        stats = details | {
            "policy_loss": (self._table.loss[key] * losses).mean(),
            "value_loss": self.value_loss(batch, values),
            "entropy": (self._table.entropy[key] * entropy).mean(),
        }
        loss = stats["policy_loss"] + self.vf_coef * stats["value_loss"] - ent_coef * stats["entropy"]
        taught = (routes != 0).any(dim=0)
        if gate_logits is not None and not self._replays:
            # The mean is over the labelled steps only, so the gate learns equally fast when few steps have labels
            # (docs/results/log.md). A batch without labelled steps adds 0, not 0 / 0.
            taught[-1] |= labelled.any()
            targets = torch.where(labelled, batch.labels, 0)
            cross_entropy = F.cross_entropy(gate_logits, targets, reduction="none")
            stats["gate_loss"] = (labelled * cross_entropy).sum() / labelled.sum().clamp(min=1)
            loss = loss + self.gate_coef * stats["gate_loss"]
        return loss, taught, stats

    def replay_loss(self, sample: Replayed) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of replayed steps, which all have labels.

        Each module, acting alone, learns to repeat the actions that led to its outcome. The discounted return weights
        each action. The gate learns to classify the labels. Parameters outside this loss get no gradient and do not
        change.

        Returns:
            The loss, a scalar, and scalars to log. Only labels with ``stored`` steps count.
        """
        counts = sample.stored[:, None].expand(sample.returns.shape).to(sample.returns.dtype)
        n = counts.sum().clamp(min=1)
        loss, stats = torch.zeros((), device=self.device), {}
        if self.overseer.method.routed:
            log_probs = self.policy.log_prob_of_modules(sample.obs, sample.actions)
            stats["replay_loss"] = -(counts * sample.returns * log_probs).sum() / n
            loss = loss + stats["replay_loss"]
        if self.policy.mlp_extractor.gate is not None:
            labels = torch.arange(len(counts), device=self.device).repeat_interleave(counts.shape[1])
            gate_logits = self.policy.gate_logits(sample.obs.flatten(0, 1))
            cross_entropy = F.cross_entropy(gate_logits, labels, reduction="none")
            stats["gate_loss"] = (counts.flatten() * cross_entropy).sum() / n
            loss = loss + self.gate_coef * stats["gate_loss"]
        return loss, stats
