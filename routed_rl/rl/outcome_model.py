"""A reward model for partial oversight: it learns from overseen episodes which outcome an episode had.

Shapes: ``N`` episodes, ``K`` outcomes, ``C`` stored episodes per outcome.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.rl.networks import mlp
from routed_rl.rl.policies import RoutedActorCriticPolicy

CAPACITY = 1024
"""Stored episodes per outcome, ``C``."""
FOLDS = 5
"""Each member holds out one stored episode in so many, to set the temperature."""
MIN_EPISODES = 5
"""Episodes of each of two outcomes that the model needs before it predicts: each member then holds out one of each."""
TEMPERATURES = tuple(2.0 ** (power / 2) for power in range(9))
"""Never below 1: by chance, the few episodes held out at first can all be right."""


class FinalSteps(NamedTuple):
    """The last steps of ``N`` episodes, as the outcome model sees them."""

    actions: Tensor
    """the last action, (N, …)"""
    final_obs: Tensor
    """the observation after it, (N, …)"""

    def select(self, index: Tensor) -> FinalSteps:
        """Return the steps that an index or a mask chooses."""
        return FinalSteps(*(tensor[index] for tensor in self))


class OutcomeModel(nn.Module):
    """An ensemble of classifiers: last observation and last action of an episode → its outcome.

    Each member has an encoder of the policy's architecture, and two hidden layers. Members differ in their initial
    weights and in the episodes that they draw. The prediction is the mean of their probabilities. Where members
    disagree, this mean is low, and the model abstains.

    The newest 1,024 overseen episodes of each outcome are stored. All outcomes are drawn equally often, so a rare one
    is not overlooked. Each member holds out a fifth of the episodes, each another fifth. On these its logits are
    divided by the temperature, the same for all members, that gives the lowest cross-entropy (Guo et al. 2017, "On
    calibration of modern neural networks", section 4.2). So among predictions with probability p, about the share p or
    more is right, if outcomes are equally frequent. Predictions of a rare outcome are right less often.

    An ending that is equal to labelled ones, bit for bit, needs no network. Let n equal endings have labels, and m of
    these labels name an outcome. Then this outcome has the probability (m + 1/2) / (n + K/2), the posterior mean under
    Jeffreys' prior. So with two outcomes, four equal labels are enough for 0.9. This also works while only one outcome
    was overseen.

    Args:
        policy: sets the architecture of the encoders; the members have weights of their own.
        n_outcomes: number of outcomes, ``K``.
        members: number of classifiers.
        min_confidence: abstain below this probability.
        batch_size: episodes per gradient step and member.
    """

    def __init__(
        self,
        policy: RoutedActorCriticPolicy,
        n_outcomes: int,
        *,
        members: int = 3,
        min_confidence: float = 0.9,
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        self.min_confidence, self.batch_size, self._features = min_confidence, batch_size, policy._features
        space = policy.action_space
        self._actions = int(space.n) if isinstance(space, spaces.Discrete) else get_action_dim(space)
        discrete = isinstance(space, spaces.Discrete)
        encoders = [policy.make_features_extractor() for _ in range(members)]
        inputs = encoders[0].features_dim + self._actions
        self.encoders = nn.ModuleList(encoders)
        self.heads = nn.ModuleList(
            nn.Sequential(mlp((inputs, 64, 64), nn.ReLU), nn.Linear(64, n_outcomes)) for _ in range(members)
        )
        obs, dtype = policy.observations.shape, policy.observations.dtype
        rows = (n_outcomes, CAPACITY)
        self.register_buffer("final_obs", torch.zeros((*rows, *obs), dtype=dtype))
        actions = torch.zeros(rows, dtype=torch.int64) if discrete else torch.zeros((*rows, self._actions))
        self.register_buffer("actions", actions)
        self.register_buffer("keys", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(n_outcomes, dtype=torch.int64))  # episodes ever stored
        self.register_buffer("temperature", torch.ones(()))
        self.to(policy.device)
        weights = [*self.encoders.parameters(), *self.heads.parameters()]
        # Strong decay, because labels may be few. With a small eps, a new kind of ending after a long time of tiny
        # losses makes steps so large that a member dies for good.
        self.optimizer = torch.optim.AdamW(weights, lr=1e-3, eps=1e-4, weight_decay=1.0)

    def add(self, endings: FinalSteps, labels: Tensor) -> None:
        """Store overseen episodes with their labels ``(N,)``, 0 … ``K`` - 1; they replace the oldest ones."""
        for label, count in enumerate(self.count.tolist()):
            own = endings.select((labels == label).nonzero().squeeze(1)[-CAPACITY:])
            slots = torch.arange(count, count + len(own.actions), device=labels.device) % CAPACITY
            self.actions[label, slots], self.final_obs[label, slots] = own
            self.keys[label, slots] = self._keys(own)
            self.count[label] += len(slots)

    @property
    def ready(self) -> bool:
        """Whether two outcomes were overseen a few times each. Before that, the networks predict nothing.

        An outcome that was never overseen is never predicted. Its episodes may get the label of another.
        """
        return int((self.count >= MIN_EPISODES).sum()) >= min(2, len(self.count))

    def fit(self, steps: int, generator: torch.Generator) -> float:
        """Take gradient steps on stored episodes, then set the temperature; return the mean cross-entropy.

        Raises:
            ValueError: if no episode is stored, or ``steps`` is below 1.
        """
        if steps < 1 or not bool(self.count.any()):
            raise ValueError(f"fit() needs a stored episode and at least one step, got {steps} steps: call add() first")
        self.train()
        losses = [self._step(generator) for _ in range(steps)]
        self._set_temperature()
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def _set_temperature(self) -> None:
        """Set the temperature on the episodes that each member holds out; without any, leave it."""
        self.eval()
        slots, losses = torch.arange(CAPACITY, device=self.count.device), []
        for member in range(len(self.heads)):
            apart = (slots % FOLDS == _fold(member)) & (slots < self.count[:, None])
            label, place = apart.nonzero().T
            if len(label):
                logits = self._portions(member, self._stored(label, place))
                weight = 1.0 / torch.bincount(label, minlength=len(self.count)).clamp(min=1)
                losses.append(torch.stack([F.cross_entropy(logits / t, label, weight) for t in TEMPERATURES]))
        if losses:
            self.temperature.fill_(TEMPERATURES[int(torch.stack(losses).mean(dim=0).argmin())])

    def _step(self, generator: torch.Generator) -> Tensor:
        """Take one gradient step with every member; return the mean cross-entropy."""
        labels = (self.count > 0).nonzero().squeeze(1)
        n = -(-self.batch_size // len(labels))
        stored = self.count[labels].clamp(max=CAPACITY)[:, None]
        losses = []
        for member in range(len(self.heads)):
            fold = _fold(member)
            shown = stored - (stored + FOLDS - 1 - fold) // FOLDS
            drawn = (torch.rand(len(labels), n, generator=generator).to(shown.device) * shown).long().flatten()
            slots = drawn + (drawn + FOLDS - 1 - fold) // (FOLDS - 1)  # every slot but those of the fold
            label = labels.repeat_interleave(n)
            losses.append(F.cross_entropy(self._member(member, self._stored(label, slots)), label))
        loss = torch.stack(losses).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach() / len(losses)

    def _stored(self, label: Tensor, slot: Tensor) -> FinalSteps:
        return FinalSteps(self.actions[label, slot], self.final_obs[label, slot])

    def _member(self, member: int, endings: FinalSteps) -> Tensor:
        features = self._features(endings.final_obs, self.encoders[member])
        actions = endings.actions
        if not actions.is_floating_point():
            actions = F.one_hot(actions, self._actions)
        logits: Tensor = self.heads[member](torch.cat([features, actions.to(features.dtype)], dim=1))
        return logits

    def _portions(self, member: int, endings: FinalSteps) -> Tensor:
        """Return the logits ``(N, K)`` of a member, computed for at most ``batch_size`` episodes at a time."""
        portions = torch.arange(len(endings.actions), device=self.count.device).split(self.batch_size)
        return torch.cat([self._member(member, endings.select(rows)) for rows in portions])

    @torch.no_grad()
    def probabilities(self, endings: FinalSteps) -> Tensor:
        """Return the probability ``(N, K)`` of each outcome."""
        self.eval()
        logits = torch.stack([self._portions(member, endings) for member in range(len(self.heads))])
        return (logits / self.temperature).softmax(dim=-1).mean(dim=0)

    def predict(self, endings: FinalSteps) -> Tensor:
        """Return the most probable outcome ``(N,)`` of each episode, and -1 where the model abstains."""
        if not len(endings.actions):
            return torch.full((0,), -1, device=self.count.device)
        predicted = self._sure(self._matched(endings))
        if self.ready:
            predicted = torch.where(predicted < 0, self._sure(self.probabilities(endings)), predicted)
        return predicted

    def _sure(self, probabilities: Tensor) -> Tensor:
        """Return the most probable outcome ``(N,)``, or -1, for probabilities ``(N, K)``."""
        probability, outcome = probabilities.max(dim=1)
        return torch.where(probability >= self.min_confidence, outcome, -1)

    def _matched(self, endings: FinalSteps) -> Tensor:
        """Return the probability ``(N, K)`` of each outcome by the labels of equal endings alone."""
        stored = torch.arange(CAPACITY, device=self.count.device) < self.count[:, None]
        equal = (self._keys(endings)[:, None, None] == self.keys) & stored
        labels = equal.sum(dim=2)
        return (labels + 0.5) / (labels.sum(dim=1, keepdim=True) + 0.5 * len(stored))

    def _keys(self, endings: FinalSteps) -> Tensor:
        """Return a hash ``(N,)`` int64 of each ending, a random linear function of its bytes."""
        rows = [tensor.reshape(len(tensor), math.prod(tensor.shape[1:])) for tensor in endings]
        codes = torch.cat([row.contiguous().view(torch.uint8) for row in rows], dim=1)
        generator = torch.Generator().manual_seed(0)
        weights = torch.randint(-(2**63), 2**63 - 1, (codes.shape[1],), generator=generator).to(codes.device)
        return torch.cat([(rows * weights).sum(dim=1) for rows in codes.split(self.batch_size)])


def _fold(member: int) -> int:
    """Return which slots a member holds out: those with this remainder. It is not 0, so the first is always shown."""
    return FOLDS - 1 - member % (FOLDS - 1)
