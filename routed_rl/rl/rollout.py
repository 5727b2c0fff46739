"""Steps waiting for their episode's label, and the few that got one, kept for replay.

``T`` steps per rollout, ``E`` environments, ``N`` steps ready to learn, ``K`` outcomes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from routed_rl.rl.oversight_env import EpisodeEnds


class Batch(NamedTuple):
    """Steps ready to learn, flattened."""

    obs: Tensor  # (N, …)
    actions: Tensor  # (N, …)
    labels: Tensor  # (N,) int64: the label of the step's episode
    log_probs: Tensor  # (N,) under the policy that acted
    advantages: Tensor  # (N,)
    returns: Tensor  # (N,) targets of the value network
    outcome_returns: Tensor  # (N,) discounted training reward until the episode's end


class Replayed(NamedTuple):
    """As many replayed steps of each of the ``K`` labels, ``n``."""

    obs: Tensor  # (K, n, …)
    actions: Tensor  # (K, n, …)
    returns: Tensor  # (K, n) discounted training reward until the episode's end
    stored: Tensor  # (K,) bool: whether there are any steps of this label; what stands in for them means nothing


class RolloutEnds:
    """How one rollout's episodes ended: ``ended``, ``truncated``, ``overseen`` (bool) and ``outcome``, ``(T, E)``.

    Args:
        device: of an environment that speaks tensors, whose ``ends`` hold all its rows, so that nothing needs to
            leave the device before the rollout is over; None for one that speaks numpy, of the ended episodes alone.
    """

    def __init__(self, n_steps: int, n_envs: int, device: torch.device | None) -> None:
        shape, self.on_device = (n_steps, n_envs), device is not None
        self.ended, self.truncated, self.overseen = torch.zeros((3, *shape), dtype=torch.bool, device=device)
        self.outcome = torch.full(shape, -1, device=device)
        arrays = {name: getattr(self, name) for name in ("truncated", "overseen", "outcome")}
        # The same memory, to which numpy writes sooner than torch.
        self._by_row = arrays if self.on_device else {name: array.numpy() for name, array in arrays.items()}
        self._final_obs: list[Any] = []

    def add(self, step: int, dones: Any, ends: EpisodeEnds) -> None:
        """Take note of what ended in step ``step`` (0 … T-1)."""
        self.ended[step] = torch.as_tensor(dones)
        for name, array in self._by_row.items():
            array[step, ends.rows] = getattr(ends, name)
        if self.on_device:
            self._final_obs.append(ends.final_obs)
        elif ends.truncated.any():
            self._final_obs.append(ends.final_obs[ends.truncated])

    def truncated_obs(self) -> Tensor:
        """The last observations of the truncated episodes, in the order of ``truncated``: ``(N, …)``."""
        if self.on_device:
            every: Tensor = torch.stack(self._final_obs)[self.truncated]
            return every
        return torch.from_numpy(np.concatenate(self._final_obs))


class EpisodeBuffer:
    """The last ``2 T`` steps of ``E`` environments, of which each is learned once.

    A label arrives with an episode's end and is spread back over its steps. What happens to an
    episode still running when the rollout ends is ``unfinished``:

    - ``"unlabelled"``: its steps so far are learned now as ``not_reached``, bootstrapped with the
      value network (the paper's choice of label);
    - ``"hold"``: they wait and are learned with the next rollout, under their true label. Steps
      that have waited a whole rollout are released as above, so memory is bounded.
    """

    def __init__(
        self,
        n_steps: int,
        n_envs: int,
        obs_shape: tuple[int, ...],
        obs_dtype: torch.dtype,
        action_shape: tuple[int, ...],
        action_dtype: torch.dtype,
        *,
        hold: bool,
        device: torch.device,
    ) -> None:
        self.n_steps, self.hold = n_steps, hold
        shape = (2 * n_steps, n_envs)
        self.obs = torch.zeros((*shape, *obs_shape), dtype=obs_dtype, device=device)
        self.actions = torch.zeros((*shape, *action_shape), dtype=action_dtype, device=device)
        self.log_probs = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.rewards = torch.zeros(shape, device=device)
        self.bootstrap = torch.zeros(shape, device=device)  # value of the last observation of a truncated episode
        self.ended = torch.zeros(shape, dtype=torch.bool, device=device)
        self.labels = torch.zeros(shape, dtype=torch.int64, device=device)  # valid where ended
        self.waiting = torch.zeros(shape, dtype=torch.bool, device=device)  # not learned yet
        self.discard()

    @classmethod
    def joined(cls, parts: Sequence[EpisodeBuffer]) -> EpisodeBuffer:
        """The buffer that holds the environments of all parts, which are equal in shape and become its slices."""
        whole = copy.copy(parts[0])
        for name in whole._fields():
            tensor = torch.cat([getattr(part, name) for part in parts], dim=1)
            setattr(whole, name, tensor)
            for part, own in zip(parts, tensor.split(tensor.shape[1] // len(parts), dim=1), strict=True):
                setattr(part, name, own)
        return whole

    def tensors(self) -> dict[str, Tensor]:
        """The current rollout's half, as views: all that the next one needs of it."""
        return {name: tensor[self.n_steps :] for name, tensor in self._fields().items()}

    def _fields(self) -> dict[str, Tensor]:
        names = (
            "obs",
            "actions",
            "log_probs",
            "values",
            "rewards",
            "bootstrap",
            "ended",
            "labels",
            "waiting",
        )
        return {name: getattr(self, name) for name in names}

    def start_rollout(self) -> None:
        """Move the last rollout back by ``T`` rows and make room for the next."""
        for tensor in self._fields().values():
            tensor[: self.n_steps] = tensor[self.n_steps :]
        for tensor in (self.rewards, self.bootstrap, self.ended):
            tensor[self.n_steps :] = 0
        self.waiting[self.n_steps :] = False  # until all are there: a rollout that breaks off is never learned

    def discard(self) -> None:
        """Forget the waiting steps: the end of their episodes will not be seen."""
        self.waiting.zero_()
        self.ended[-1] = True  # so that nobody counts an episode's length from before

    def add(self, step: int, obs: Tensor, actions: Tensor, log_probs: Tensor) -> None:
        """Store step ``step`` (0 … T-1) of the current rollout, each tensor ``(E, …)``."""
        row = self.n_steps + step
        self.obs[row], self.actions[row], self.log_probs[row] = obs, actions, log_probs

    def lengths(self) -> Tensor:
        """``(T, E)``: how long an episode that ends at this step of the current rollout has been, at most ``2 T``."""
        step = torch.arange(len(self.ended), device=self.ended.device)[:, None]
        last_end = torch.where(self.ended, step, -1).cummax(dim=0).values
        return (step[1:] - last_end[:-1])[self.n_steps - 1 :]

    def finish_rollout(self, last_values: Tensor, not_reached: int, gamma: float, gae_lambda: float) -> Batch:
        """Spread labels back, estimate advantages (GAE, Schulman et al. 2016) and take what is ready.

        Args:
            last_values: ``(E,)`` values of the observations after the last step.
            not_reached: the label of steps that are learned before their episode has ended.
        """
        first = 0 if self.hold else self.n_steps  # where nothing is held, the last rollout has been learned
        self.waiting[:first], self.waiting[self.n_steps :] = False, True
        labels, resolved = torch.full_like(self.labels, not_reached), torch.zeros_like(self.waiting)
        advantages, outcome_returns = torch.zeros_like(self.values), torch.zeros_like(self.values)
        label = labels[0]
        done, advantage = torch.zeros_like(self.waiting[0]), torch.zeros_like(last_values)
        outcome_return, next_value = torch.zeros_like(last_values), last_values
        for t in reversed(range(first, 2 * self.n_steps)):
            ended, reward = self.ended[t], self.rewards[t]
            going = (~ended).float()
            delta = reward + gamma * (going * next_value + self.bootstrap[t]) - self.values[t]
            advantage = delta + gamma * gae_lambda * going * advantage
            outcome_return = reward + gamma * going * outcome_return
            label, done = torch.where(ended, self.labels[t], label), done | ended
            advantages[t], outcome_returns[t], labels[t], resolved[t] = advantage, outcome_return, label, done
            next_value = self.values[t]

        ready = self.waiting.clone()
        if self.hold:
            ready[self.n_steps :] &= resolved[self.n_steps :]
        self.waiting &= ~ready
        index = ready.flatten().nonzero().squeeze(1)

        def pick(tensor: Tensor) -> Tensor:
            return tensor.flatten(0, 1)[index]

        return Batch(
            obs=pick(self.obs),
            actions=pick(self.actions),
            labels=pick(labels),
            log_probs=pick(self.log_probs),
            advantages=pick(advantages),
            returns=pick(advantages) + pick(self.values),
            outcome_returns=pick(outcome_returns),
        )


class LabelReplay:
    """The most recent labelled steps of each outcome: ``(K, capacity)`` rings.

    Only what an overseer labelled is ever stored; a scarce label is thus used many times.
    """

    def __init__(
        self,
        n_labels: int,
        capacity: int,
        obs_shape: tuple[int, ...],
        obs_dtype: torch.dtype,
        action_shape: tuple[int, ...],
        action_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.capacity = capacity
        self.obs = torch.zeros((n_labels, capacity, *obs_shape), dtype=obs_dtype, device=device)
        self.actions = torch.zeros((n_labels, capacity, *action_shape), dtype=action_dtype, device=device)
        self.returns = torch.zeros((n_labels, capacity), device=device)
        self.count = torch.zeros(n_labels, dtype=torch.int64)  # steps ever stored

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("obs", "actions", "returns", "count")}

    def add(self, batch: Batch) -> None:
        """Store the labelled steps of a batch, the oldest giving way."""
        for label in range(len(self.count)):
            index = (batch.labels == label).nonzero().squeeze(1)[-self.capacity :]
            start = int(self.count[label])
            slots = torch.arange(start, start + len(index), device=index.device) % self.capacity
            self.obs[label, slots] = batch.obs[index]
            self.actions[label, slots] = batch.actions[index]
            self.returns[label, slots] = batch.outcome_returns[index]
            self.count[label] += len(index)

    def sample(self, n: int, generator: torch.Generator) -> Replayed:
        """``n`` steps of each stored label, with replacement; a label without steps draws nothing."""
        stored, device = self.count > 0, self.obs.device
        slots = torch.zeros(len(self.count), n, dtype=torch.int64)
        filled = self.count.clamp(max=self.capacity)[stored, None]
        slots[stored] = (torch.rand(len(filled), n, generator=generator) * filled).long()
        labels, slots = torch.arange(len(slots), device=device)[:, None], slots.to(device)
        return Replayed(
            self.obs[labels, slots], self.actions[labels, slots], self.returns[labels, slots], stored.to(device)
        )
