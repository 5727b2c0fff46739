"""The networks of a routed policy: encoders, modules, and a gate that combines the modules' outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from routed_rl.routing import route_gradient

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}
"""Name → activation function, for ``policy_kwargs={"activation_fn": …}``."""
MINIGRID_CATEGORIES = (11, 6, 4)
"""The numbers of MiniGrid's object types, colours and states, the channels of its images."""


def mlp(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers)


class MlpEncoder(BaseFeaturesExtractor):
    """A shared encoder for flat observations: ``(B, …)`` → ``(B, sizes[-1])``."""

    def __init__(self, observation_space: spaces.Box, sizes: Sequence[int] = (64,), activation: str = "relu") -> None:
        super().__init__(observation_space, features_dim=sizes[-1])
        inputs = spaces.flatdim(observation_space)
        self.layers = nn.Sequential(nn.Flatten(), mlp((inputs, *sizes), ACTIVATIONS[activation]))

    def forward(self, observations: Tensor) -> Tensor:
        encoded: Tensor = self.layers(observations)
        return encoded


class SymbolicImageEncoder(BaseFeaturesExtractor):
    """A shared encoder for images of category numbers, such as MiniGrid's channels (type, colour, state).

    ``(B, C, H, W)`` or ``(B, H, W, C)`` → one-hot → ``(B, sizes[-1])``.

    If the bounds of the observation space are 0 and 255, also pass ``normalize_images=False`` to the policy. Otherwise
    Stable-Baselines3 divides the numbers by 255.

    Args:
        categories: the number of categories in each of the ``C`` channels. By default they follow from the upper bounds
            of the space, as in :data:`routed_rl.envs.RECIPES`. If these are 255, the categories are those of MiniGrid's
            three channels: object types, colours and states.

    Raises:
        ValueError: if the number of categories does not match an image axis, or is not known, or an image has a number
            too large.
    """

    starts: Tensor
    limits: Tensor

    def __init__(
        self,
        observation_space: spaces.Box,
        categories: Sequence[int] | None = None,
        sizes: Sequence[int] = (64,),
        activation: str = "relu",
    ) -> None:
        super().__init__(observation_space, features_dim=sizes[-1])
        shape = observation_space.shape
        categories = _categories(observation_space) if categories is None else categories
        if len(shape) != 3 or len(categories) not in (shape[0], shape[-1]):
            raise ValueError(
                f"categories must have one number per image channel, got {list(categories)} for images of shape {shape}"
            )
        self.channels_last = shape[-1] == len(categories)
        self.categories = tuple(categories)
        cells = math.prod(shape) // len(categories)
        # For each cell and channel, the index in the one-hot vector at which its categories start.
        starts = torch.arange(cells)[:, None] * sum(categories) + torch.tensor([0, *categories[:-1]]).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)  # (cells, C)
        self.register_buffer("limits", torch.tensor(categories), persistent=False)  # (C,)
        self.layers = mlp((cells * sum(categories), *sizes), ACTIVATIONS[activation])

    def forward(self, observations: Tensor) -> Tensor:
        channels = observations.long().flatten(1, 2) if self.channels_last else observations.long().flatten(2).mT
        if not bool((channels < self.limits).all()):
            raise ValueError(
                f"every number of an image must be below its channel's number of categories {self.categories}, "
                f"got {channels.flatten(0, 1).amax(0).tolist()}"
            )
        hot = torch.zeros(len(observations), len(self.starts) * sum(self.categories), device=channels.device)
        hot.scatter_(1, (channels + self.starts).flatten(1), 1.0)
        encoded: Tensor = self.layers(hot)
        return encoded


def _categories(space: spaces.Box) -> Sequence[int]:
    """Return the number of categories in each channel of an image space, from its bounds."""
    if len(space.shape) == 3 and (space.high == 255).all():
        if 3 in (space.shape[0], space.shape[-1]):
            return MINIGRID_CATEGORIES
    elif len(space.shape) == 3 and np.isfinite(space.high).all():
        for high in (space.high, np.moveaxis(space.high, 0, -1)):  # (H, W, C), or (C, H, W) made so
            if (high == high[0, 0]).all():
                return [int(highest) + 1 for highest in high[0, 0]]
    raise ValueError(
        f"the categories of {space} are not known: pass features_extractor_kwargs={{'categories': (11, 6, 4)}}, with "
        "one number for each channel"
    )


class PointwiseConv(nn.Conv1d):
    """A 1×1 convolution ``(B, P, C)`` → ``(B, P', C)`` as a matrix product: many times faster on a CPU."""

    def forward(self, planes: Tensor) -> Tensor:
        assert self.bias is not None
        return torch.einsum("oi,bic->boc", self.weight[:, :, 0], planes) + self.bias[:, None]


class RoutedExtractor(nn.Module):
    """Computes the actor latent, a gated sum of ``M`` modules, and the value latent, from features ``(B, F)``.

    The gate is a softmax over the modules (for two modules, the paper's sigmoid). Steering replaces the gate's output
    by fixed weights. Ablation removes modules from the softmax. The outputs then equal those of a network without
    these modules.

    Args:
        experts: name → module, each ``(B, F)`` → ``(B, D)``.
        gate: ``(B, F)`` → ``(B, M)`` logits; with None all modules have equal weights.
        value: ``(B, F)`` → the value latent.
        latent_dims: ``D``, and the width of the value latent.
        detach_encoder: stop the gradient before modules and gate, so that only the value loss trains the encoder.
    """

    def __init__(
        self,
        experts: Mapping[str, nn.Module],
        gate: nn.Module | None,
        value: nn.Module,
        latent_dims: tuple[int, int],
        *,
        detach_encoder: bool,
    ) -> None:
        super().__init__()
        self.names = tuple(experts)
        self.experts = nn.ModuleList(experts.values())
        self.gate = gate
        self.value = value
        self.latent_dim_pi, self.latent_dim_vf = latent_dims
        self.detach_encoder = detach_encoder
        self.unsteer()

    def unsteer(self) -> None:
        """Undo all steering and ablation: the gate weights all modules."""
        self.mix: tuple[float, ...] | None = None
        self.ablated: frozenset[str] = frozenset()
        self.avoid: dict[int, float] = {}
        self.temperature = 1.0

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.avoid or self.temperature != 1:
            raise ValueError(
                "avoid and temperature work only in predict() and get_distribution(); call unsteer() before forward()"
            )
        return self.forward_actor(features), self.forward_critic(features)

    def forward_critic(self, features: Tensor) -> Tensor:
        latent: Tensor = self.value(features)
        return latent

    def forward_actor(self, features: Tensor) -> Tensor:
        if self.detach_encoder:
            features = features.detach()
        active = [i for i, name in enumerate(self.names) if name not in self.ablated]
        if self.mix is not None:
            chosen = [(i, weight) for i, weight in enumerate(self.mix) if weight != 0]
            if len(chosen) == 1:
                return self._expert(chosen[0][0], features)
            return sum((weight * self._expert(i, features) for i, weight in chosen), torch.zeros(()))
        if len(active) == 1:
            return self._expert(active[0], features)
        experts = [self._expert(i, features) for i in active]
        if self.gate is None:
            return torch.stack(experts).mean(0)
        return _gated_sum(torch.softmax(self.gate(features)[:, active], dim=-1), experts)

    def gate_weights(self, features: Tensor) -> Tensor:
        """Return the gate's weights ``(B, M)`` of the modules, 0 for ablated ones; ``steer`` does not change them."""
        if self.detach_encoder:
            features = features.detach()
        active = [i for i, name in enumerate(self.names) if name not in self.ablated]
        weights = features.new_zeros(len(features), len(self.names))
        weights[:, active] = 1 / len(active) if self.gate is None else self.gate(features)[:, active].softmax(dim=-1)
        return weights

    def forward_routed(
        self, features: Tensor, routes: Tensor, players: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the unsteered actor latent, with each sample's gradient weighted per module. Training uses this pass.

        Args:
            features: ``(B, F)``.
            routes: ``(B, M + 1)`` route weights of the modules and, last, of the gate.
            players: ``(B,)`` the module that acts alone, or ``M`` for the gate; None: the gate acts everywhere.

        Returns:
            The actor latent ``(B, D)``. Then the gate's logits ``(B, M)`` for the gate's own loss, without routing;
            None if the gate is not learned.
        """
        if self.detach_encoder:
            features = features.detach()
        experts = [route_gradient(self._expert(i, features), routes[:, i]) for i in range(len(self.names))]
        if len(experts) == 1:
            return experts[0], None
        logits = None if self.gate is None else self.gate(features)
        if logits is None and players is None:
            return torch.stack(experts).mean(0), None
        gate = torch.full_like(routes[:, :-1], 1 / len(experts)) if logits is None else torch.softmax(logits, dim=-1)
        gate = route_gradient(gate, routes[:, -1])
        return _gated_sum(gate if players is None else _played(gate, players), experts), logits

    def forward_players(self, features: Tensor, players: Tensor) -> Tensor:
        """Return the unsteered actor latent ``(B, D)`` where ``players`` act, as in :meth:`forward_routed`."""
        return self.forward_routed(features, features.new_ones(len(features), len(self.names) + 1), players)[0]

    def forward_alone(self, features: Tensor, module: int) -> Tensor:
        """Return the latent ``(B, D)`` of the module with this index; no other module gets even a zero gradient."""
        return self._expert(module, features.detach() if self.detach_encoder else features)

    def _expert(self, index: int, features: Tensor) -> Tensor:
        latent: Tensor = self.experts[index](features)
        return latent


def _played(gate: Tensor, players: Tensor) -> Tensor:
    """Return the gate's weights ``(B, M)``, but weight 1 for a module that acts alone."""
    modules = torch.arange(gate.shape[1], device=gate.device)
    alone = (players[:, None] == modules).to(gate.dtype)
    return torch.where(players[:, None] < len(modules), alone, gate)


def _gated_sum(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    total = gate[:, :1] * experts[0]
    for i, expert in enumerate(experts[1:], start=1):
        total = torch.addcmul(total, gate[:, i : i + 1], expert)
    return total
