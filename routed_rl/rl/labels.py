"""From the ends of a rollout's episodes to labels, training rewards and value estimates in the buffer."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from routed_rl.rl.balance import LabelBalance
from routed_rl.rl.outcome_model import FinalSteps, OutcomeModel
from routed_rl.rl.overseer import LabelTable, Overseer
from routed_rl.rl.policies import RoutedActorCriticPolicy
from routed_rl.rl.rollout import EpisodeBuffer, RolloutEnds
from routed_rl.runs import derive_seed

FIT_STEPS = 20
"""Gradient steps of the outcome model per rollout."""


class RoutedLabels(OnPolicyAlgorithm):
    """The labelling of :class:`~routed_rl.rl.RoutedAlgorithm`, which sets every attribute that it reads."""

    policy: RoutedActorCriticPolicy
    overseer: Overseer
    buffer: EpisodeBuffer
    outcome_model: OutcomeModel | None
    bootstrap: bool
    batch_size: int | None
    _table: LabelTable
    _balance: LabelBalance

    def _rng(self, *purpose: str) -> int:
        """Return a seed that depends only on the run's seed, this update and a purpose: no generator state is saved."""
        return derive_seed(self.seed, *purpose, self._n_updates)

    def _new_outcome_model(self) -> OutcomeModel | None:
        """Return a new outcome model for an overseer that predicts, else None. No other random number changes."""
        if not self.overseer.predicts:
            return None
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else [self.device]):
            torch.manual_seed(self._rng("outcome model"))
            return OutcomeModel(self.policy, len(self.overseer.outcomes))

    @torch.no_grad()
    def _values(self, obs: Tensor) -> Tensor:
        """Return the values ``(N,)`` of observations ``(N, …)``, computed at most ``batch_size`` at a time."""
        portions = obs.split(self.batch_size or max(len(obs), 1))
        return torch.cat([self.policy.predict_values(portion).flatten() for portion in portions])

    def _store_ends(self, ends: RolloutEnds) -> None:
        """Write the rollout's labels, training rewards and value estimates to the buffer."""
        new = slice(self.n_steps, None)
        self._store_labels(ends)
        self.buffer.values[new] = self._values(self.buffer.obs[new].flatten(0, 1)).view(ends.ended.shape)
        self._store_bootstrap(ends)

    def _store_bootstrap(self, ends: RolloutEnds) -> None:
        """Write the value estimates of the last observations of truncated episodes."""
        if self.bootstrap and bool(ends.truncated.any()):
            values = self._values(self.policy.observations.pack(ends.truncated_obs(), self.device))
            self.buffer.bootstrap[self.n_steps :].masked_scatter_(ends.truncated.to(self.device), values)

    def _store_labels(self, ends: RolloutEnds) -> None:
        """Label the rollout's episodes by how they ended, and log the labels.

        Raises:
            ValueError: if the policy gave NaN for an action. Sampling does not notice it.
        """
        new = slice(self.n_steps, None)
        if bool(self.buffer.log_probs[new].isnan().any()):
            raise ValueError("the policy's probabilities became NaN: lower learning_rate, or set max_grad_norm")
        self.buffer.ended[new] = ended = ends.ended.to(self.device)
        rng = np.random.default_rng(self._rng("labels"))
        arrays = [tensor.cpu().numpy() for tensor in (ends.outcome, ends.overseen, self.buffer.lengths())]
        labels = torch.from_numpy(self.overseer.label(arrays[0], arrays[1], rng, arrays[2])).to(self.device)
        counts = torch.bincount(labels[ended], minlength=len(self.overseer.rewards)).tolist()
        without = int((ends.ended & (ends.outcome < 0) & ~ends.truncated).sum())
        self._balance.add(counts, without, self.n_steps)
        if self.outcome_model is not None:
            labels[ended] = self._predicted(self.outcome_model, labels[ended], ends)
        self.buffer.labels[new] = labels
        self.buffer.pay(self._table.rewards, self._table.shares, self.overseer.not_reached)
        episodes = max(sum(counts), 1)
        names = (*self.overseer.outcomes, "unseen", "none")
        self.logger.record("rollout/episodes", sum(counts))
        for name, count in zip(names, counts, strict=True):
            self.logger.record(f"rollout/label_{name}", count / episodes)
        self.logger.record("rollout/ep_training_reward", float(self.buffer.rewards[new].sum()) / episodes)

    def _predicted(self, model: OutcomeModel, labels: Tensor, ends: RolloutEnds) -> Tensor:
        """Let the outcome model learn from labelled episodes, and label the unseen ones where it is sure.

        Args:
            model: the outcome model.
            labels: ``(N,)`` the overseer's labels of the ended episodes, in the order of ``ends.ended``.
            ends: how the episodes ended. The outcomes of unseen episodes are only compared with the predictions, for
                the log.

        Returns:
            ``(N,)`` labels. If the model abstains, an unseen episode keeps its label, or is labelled as novel where the
            model labels at least the share ``min_confidence`` of the unseen episodes. The log has the share of unseen
            episodes that got a label (``outcome_model/predicted``), and the share whose predicted label is right
            (``outcome_model/right``).
        """
        step, env = ends.ended.to(self.device).nonzero(as_tuple=True)
        labelled, unseen = self.overseer.is_labelled(labels), labels == self.overseer.reached
        loss, predicted = 0.0, labels[unseen]
        if len(labels):
            final_obs = self.policy.observations.pack(ends.final_obs(), self.device)
            last = FinalSteps(self.buffer.actions[self.n_steps + step, env], final_obs)
            model.add(last.select(labelled), labels[labelled])
            if bool(model.count.any()):
                loss = model.fit(FIT_STEPS, torch.Generator().manual_seed(self._rng("outcome model", "batches")))
            predicted = model.predict(last.select(unseen))
        true, episodes = ends.outcome[ends.ended].to(self.device)[unseen], max(len(predicted), 1)
        self.logger.record("outcome_model/loss", loss)
        self.logger.record("outcome_model/predicted", float((predicted >= 0).sum()) / episodes)
        self.logger.record("outcome_model/right", float((predicted == true).sum()) / episodes)
        # Where nearly all ends are explained, one that is not is probably that of an outcome which was never labelled.
        explained = (predicted >= 0).float().mean() >= model.min_confidence
        other = self.overseer.novel if explained else self.overseer.reached
        return labels.masked_scatter(unseen, torch.where(predicted >= 0, predicted, other))
