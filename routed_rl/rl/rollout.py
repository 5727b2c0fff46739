"""Buffers: rollout steps that wait for the label of their episode, and labelled steps for replay.

Shapes: ``T`` steps per rollout, ``E`` environments, ``N`` steps that are ready for learning, ``K`` outcomes.
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
    """Steps that are ready for learning, flattened over time and environments."""

    obs: Tensor  # (N, …)
    actions: Tensor  # (N, …)
    labels: Tensor  # (N,) int64: the label of the step's episode
    players: Tensor  # (N,) int64: the module that acted alone, M for the gate
    log_probs: Tensor  # (N,) log-probabilities of the actions under the policy that took them
    advantages: Tensor  # (N,)
    returns: Tensor  # (N,) targets of the value network
    outcome_returns: Tensor  # (N,) the return if the episode's end pays 1 and nothing else pays; 0 if it still runs

    @property
    def values(self) -> Tensor:
        """``(N,)`` value estimates under the policy that took the actions."""
        return self.returns - self.advantages


class Replayed(NamedTuple):
    """Replayed steps: ``n`` steps for each of the ``K`` labels."""

    obs: Tensor  # (K, n, …)
    actions: Tensor  # (K, n, …)
    returns: Tensor  # (K, n) the return if the episode's end pays 1
    stored: Tensor  # (K,) bool: true if the label has stored steps; where it is false, the entries above are filler


class RolloutEnds:
    """How the episodes of one rollout ended: ``ended``, ``truncated``, ``overseen`` (bool) and ``outcome``, ``(T, E)``.

    Args:
        device: the device of a tensor environment; None for a numpy environment. The ends of a tensor environment have
            an entry for every row, so nothing leaves the device during the rollout. The ends of a numpy environment
            have entries for the ended episodes only.
    """

    def __init__(self, n_steps: int, n_envs: int, device: torch.device | None) -> None:
        shape, self.on_device = (n_steps, n_envs), device is not None
        self.ended, self.truncated, self.overseen = torch.zeros((3, *shape), dtype=torch.bool, device=device)
        self.outcome = torch.full(shape, -1, device=device)
        arrays = {name: getattr(self, name) for name in ("truncated", "overseen", "outcome")}
        # Numpy views of the same memory: numpy writes single rows faster than torch.
        self._by_row = arrays if self.on_device else {name: array.numpy() for name, array in arrays.items()}
        self._rows: list[Any] = []
        self._final_obs: list[Any] = []

    def add(self, step: int, dones: Any, ends: EpisodeEnds) -> None:
        """Store the episodes that ended in step ``step`` (0 … T-1)."""
        self.ended[step] = torch.as_tensor(dones)
        for name, array in self._by_row.items():
            array[step, ends.rows] = getattr(ends, name)
        if self.on_device or len(ends.rows):
            self._rows.append(ends.rows)
            self._final_obs.append(ends.final_obs)

    def columns(self, start: int, stop: int) -> RolloutEnds:
        """Return the ends of the environments ``start`` … ``stop - 1``, to read only."""
        part = copy.copy(self)
        for name in ("ended", "truncated", "overseen", "outcome"):
            setattr(part, name, getattr(self, name)[:, start:stop])
        if self.on_device:
            part._final_obs = [obs[start:stop] for obs in self._final_obs]
        else:
            own = [(start <= rows) & (rows < stop) for rows in self._rows]
            part._final_obs = [obs[mine] for obs, mine in zip(self._final_obs, own, strict=True)]
            part._rows = [rows[mine] - start for rows, mine in zip(self._rows, own, strict=True)]
        return part

    def final_obs(self) -> Tensor | np.ndarray:
        """Return the last observations ``(N, …)`` of the ended episodes, in the order of ``ended``; at least one."""
        if self.on_device:
            every: Tensor = torch.stack(self._final_obs)[self.ended]
            return every
        return np.concatenate(self._final_obs)

    def truncated_obs(self) -> Tensor | np.ndarray:
        """Return the last observations ``(N, …)`` of the truncated episodes, in the order of ``truncated``."""
        cut = self.truncated[self.ended]
        return self.final_obs()[cut if self.on_device else cut.numpy()]


class EpisodeBuffer:
    """Holds the last ``2 T`` steps of ``E`` environments, and gives each step to the learner once.

    A label arrives at the end of an episode and is copied back to all its steps. ``hold`` decides about episodes that
    are still running when the rollout ends:

    - False (``unfinished="unlabelled"``): the learner gets their steps now, with the label ``not_reached``, as in the
      paper. The value network estimates the return after the cut.
    - True (``unfinished="hold"``): their steps wait until the next rollout, and then get their true label. Steps that
      have waited for a whole rollout are released as above, so memory is bounded.

    ``paid`` decides whether the environment's own rewards are kept, for an overseer that pays them.
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
        players: Tensor,
        hold: bool,
        paid: bool = False,
        device: torch.device,
    ) -> None:
        self.n_steps, self.hold, self.players = n_steps, hold, players
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
        self.paid = torch.zeros(shape, device=device) if paid else None  # the environment's own rewards
        self.discard()

    @classmethod
    def joined(cls, parts: Sequence[EpisodeBuffer]) -> EpisodeBuffer:
        """Return one buffer with the environments of all ``parts``; the parts, equal in shape, become its slices."""
        whole = copy.copy(parts[0])
        whole.players = torch.cat([part.players for part in parts])
        for name in whole._fields():
            tensor = torch.cat([getattr(part, name) for part in parts], dim=1)
            setattr(whole, name, tensor)
            for part, own in zip(parts, tensor.split(tensor.shape[1] // len(parts), dim=1), strict=True):
                setattr(part, name, own)
        return whole

    def tensors(self) -> dict[str, Tensor]:
        """Return views of the current rollout's steps: all that a checkpoint must keep for the next rollout."""
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
        return {name: getattr(self, name) for name in (*names, *(() if self.paid is None else ("paid",)))}

    def start_rollout(self) -> None:
        """Move the last rollout back by ``T`` rows and make room for the next."""
        for tensor in self._fields().values():
            tensor[: self.n_steps] = tensor[self.n_steps :]
        for tensor in (self.rewards, self.bootstrap, self.ended):
            tensor[self.n_steps :] = 0
        self.waiting[self.n_steps :] = False  # finish_rollout sets them: an interrupted rollout is never learned

    def discard(self) -> None:
        """Forget the waiting steps, because the end of their episodes will never be seen."""
        self.waiting.zero_()
        self.ended[-1] = True  # new episodes start here, so lengths() does not count earlier steps

    def add(self, step: int, obs: Tensor, actions: Tensor, log_probs: Tensor) -> None:
        """Store step ``step`` (0 … T-1) of the current rollout, each tensor ``(E, …)``."""
        row = self.n_steps + step
        self.obs[row], self.actions[row], self.log_probs[row] = obs, actions, log_probs

    def add_rewards(self, step: int, rewards: Tensor | np.ndarray) -> None:
        """Keep the environment's rewards ``(E,)`` for step ``step`` (0 … T-1), if the buffer keeps any."""
        if self.paid is not None:
            self.paid[self.n_steps + step] = torch.as_tensor(rewards)

    def pay(self, ends: Tensor, shares: Tensor, not_reached: int) -> None:
        """Set the training rewards of all steps, by the labels of their episodes.

        Args:
            ends: ``(K + 3, M + 1)`` reward at the end of an episode, by label and player.
            shares: ``(K + 3, M + 1)`` weight of the environment's reward at each step, by label and player.
            not_reached: the label of steps whose episode still runs.
        """
        # With hold, steps of the previous rollout may get their label, and so their share, only now.
        rows = slice(self.n_steps if self.paid is None else 0, None)
        self.rewards[rows] = ends[self.labels[rows], self.players] * self.ended[rows]
        if self.paid is not None:
            step = torch.arange(len(self.ended), device=self.ended.device)[:, None]
            end = torch.where(self.ended, step, len(step)).flip(0).cummin(dim=0).values.flip(0)
            labels = torch.cat([self.labels, torch.full_like(self.labels[:1], not_reached)]).gather(0, end)
            self.rewards += shares[labels, self.players] * self.paid

    def lengths(self) -> Tensor:
        """Return ``(T, E)``: the length, at most ``2 T``, of an episode that ends at this step of the rollout."""
        step = torch.arange(len(self.ended), device=self.ended.device)[:, None]
        last_end = torch.where(self.ended, step, -1).cummax(dim=0).values
        return (step[1:] - last_end[:-1])[self.n_steps - 1 :]

    def finish_rollout(self, last_values: Tensor, not_reached: int, gamma: float, gae_lambda: float) -> Batch:
        """Copy labels back over episodes, estimate advantages (GAE, Schulman et al. 2016), return the ready steps.

        Args:
            last_values: ``(E,)`` value estimates of the observations after the last step.
            not_reached: the label for steps that are learned before their episode has ended.
            gamma: discount factor.
            gae_lambda: lambda of GAE.
        """
        first = 0 if self.hold else self.n_steps  # without hold, all of the previous rollout has been learned
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
            outcome_return = torch.where(ended, 1.0, gamma * outcome_return)
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
            players=pick(self.players.expand_as(labels)),
            log_probs=pick(self.log_probs),
            advantages=pick(advantages),
            returns=pick(advantages) + pick(self.values),
            outcome_returns=pick(outcome_returns),
        )


class LabelReplay:
    """Holds the most recent labelled steps of each outcome, in ring buffers ``(K, capacity)``.

    It stores only steps of episodes with a label, seen or predicted. So the learner can use the steps of a rare label
    many times.
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
        """Store the labelled steps of a batch; they replace the oldest ones."""
        for label in range(len(self.count)):
            index = (batch.labels == label).nonzero().squeeze(1)[-self.capacity :]
            start = int(self.count[label])
            slots = torch.arange(start, start + len(index), device=index.device) % self.capacity
            self.obs[label, slots] = batch.obs[index]
            self.actions[label, slots] = batch.actions[index]
            self.returns[label, slots] = batch.outcome_returns[index]
            self.count[label] += len(index)

    def sample(self, n: int, generator: torch.Generator) -> Replayed:
        """Return ``n`` steps per label, drawn with replacement; a label without steps gets filler and no draws."""
        stored, device = self.count > 0, self.obs.device
        slots = torch.zeros(len(self.count), n, dtype=torch.int64)
        filled = self.count.clamp(max=self.capacity)[stored, None]
        slots[stored] = (torch.rand(len(filled), n, generator=generator) * filled).long()
        labels, slots = torch.arange(len(slots), device=device)[:, None], slots.to(device)
        return Replayed(
            self.obs[labels, slots], self.actions[labels, slots], self.returns[labels, slots], stored.to(device)
        )
