"""What routed agents learn by: the loss of fresh samples, and the loss of replayed ones.

``N`` steps, ``M`` modules.
"""

from __future__ import annotations

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor
from torch.nn import functional as F

from routed_rl.rl.rollout import Batch, Replayed


class RoutedLosses(OnPolicyAlgorithm):
    """The losses of :class:`~routed_rl.rl.RoutedAlgorithm`; a subclass adds its :meth:`policy_loss`."""

    def policy_loss(self, batch: Batch, log_probs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the subclass learns by: a loss per step, and further statistics.

        Args:
            batch: ``N`` steps.
            log_probs: ``(N,)`` under the policy that learns.

        Returns:
            ``(N,)`` losses, before they are weighed by label, and scalars named in ``statistics``.
        """
        raise NotImplementedError

    def loss(self, batch: Batch, ent_coef: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What samples of every label teach.

        Args:
            batch: ``N`` steps.
            ent_coef: weight of the entropy bonus now.

        Returns:
            The loss, a scalar; ``(M + 1,)``, true for each module, and last the gate, that it teaches; scalars to log.
        """
        routes, labelled = self._table.routes[batch.labels], self.overseer.is_labelled(batch.labels)
        values, log_probs, entropy, gate_logits = self._evaluate(batch.obs, batch.actions, routes)
        losses, details = self.policy_loss(batch, log_probs)
        stats = details | {
            "policy_loss": (self._table.loss[batch.labels] * losses).mean(),
            "value_loss": F.mse_loss(values, batch.returns),
            "entropy": (self._table.entropy[batch.labels] * entropy).mean(),
        }
        loss = stats["policy_loss"] + self.vf_coef * stats["value_loss"] - ent_coef * stats["entropy"]
        taught = (routes != 0).any(dim=0)
        if gate_logits is not None and not self._replays:
            # The mean over this batch's labelled steps, so that the gate learns as fast where they are few
            # (docs/log.md); a batch without any contributes 0, never 0 / 0.
            taught[-1] |= labelled.any()
            targets = torch.where(labelled, batch.labels, 0)
            cross_entropy = F.cross_entropy(gate_logits, targets, reduction="none")
            stats["gate_loss"] = (labelled * cross_entropy).sum() / labelled.sum().clamp(min=1)
            loss = loss + self.gate_coef * stats["gate_loss"]
        return loss, taught, stats

    def replay_loss(self, sample: Replayed) -> tuple[Tensor, dict[str, Tensor]]:
        """What labelled steps alone teach: each module, acting by itself, to repeat what led to its outcome, in
        proportion to the discounted return; the gate, to tell the labels apart. What is not in this graph gets no
        gradient, and so does not move.

        Returns:
            The loss, a scalar that counts only labels with ``stored`` steps, and scalars to log.
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
