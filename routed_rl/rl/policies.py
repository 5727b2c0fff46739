"""The routed actor-critic: one module per behaviour, a gate over them, a shared output layer, a value network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
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


def _mlp(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers)


class MlpEncoder(BaseFeaturesExtractor):
    """A shared encoder for flat observations: ``(B, …)`` → ``(B, sizes[-1])``."""

    def __init__(self, observation_space: spaces.Box, sizes: Sequence[int] = (64,), activation: str = "relu") -> None:
        super().__init__(observation_space, features_dim=sizes[-1])
        inputs = spaces.flatdim(observation_space)
        self.layers = nn.Sequential(nn.Flatten(), _mlp((inputs, *sizes), ACTIVATIONS[activation]))

    def forward(self, observations: Tensor) -> Tensor:
        encoded: Tensor = self.layers(observations)
        return encoded


class RoutedExtractor(nn.Module):
    """Features ``(B, F)`` → the gated sum of ``M`` modules ``(B, D)`` and the value latent.

    The gate is a softmax over the modules (for two, the paper's sigmoid). Steering replaces its
    output by fixed weights; ablation removes modules from the softmax, which gives exactly
    the outputs of a network that never had them.
    """

    def __init__(
        self,
        features: int,
        modules: Sequence[str],
        hidden: Sequence[int],
        value_hidden: Sequence[int],
        activation: type[nn.Module],
        learned_gate: bool,
        detach_encoder: bool,
    ) -> None:
        super().__init__()
        self.names = tuple(modules)
        self.detach_encoder = detach_encoder
        self.latent_dim_pi, self.latent_dim_vf = hidden[-1], value_hidden[-1]
        self.experts = nn.ModuleList(_mlp((features, *hidden), activation) for _ in modules)
        self.gate: nn.Sequential | None = None
        if learned_gate and len(modules) > 1:
            self.gate = nn.Sequential(_mlp((features, *hidden), activation), nn.Linear(hidden[-1], len(modules)))
        self.value = _mlp((features, *value_hidden), activation)
        self.mix: tuple[float, ...] | None = None
        self.ablated: frozenset[str] = frozenset()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
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
        gate = torch.softmax(self.gate(features)[:, active], dim=-1)
        return _gated_sum(gate, experts)

    def forward_routed(self, features: Tensor, routes: Tensor) -> tuple[Tensor, Tensor | None]:
        """The unsteered actor with each sample's gradient weighted per module: the one pass of training.

        Args:
            features: ``(B, F)``.
            routes: ``(B, M + 1)`` weights of the modules and, last, of the gate.

        Returns:
            The actor latent ``(B, D)`` and the gate's logits ``(B, M)``, not routed, for the gate's
            own loss (None without a learned gate).
        """
        if self.detach_encoder:
            features = features.detach()
        experts = [route_gradient(self._expert(i, features), routes[:, i]) for i in range(len(self.names))]
        if len(experts) == 1:
            return experts[0], None
        if self.gate is None:
            return torch.stack(experts).mean(0), None
        logits = self.gate(features)
        gate = route_gradient(torch.softmax(logits, dim=-1), routes[:, -1])
        return _gated_sum(gate, experts), logits

    def forward_alone(self, features: Tensor, modules: Tensor) -> Tensor:
        """The latents ``(B, D)`` of one module per sample, chosen by number: ``modules`` ``(B,)``.

        Modules that no sample chose are not touched, not even with a zero gradient.
        """
        if self.detach_encoder:
            features = features.detach()
        latents = features.new_zeros(len(features), self.latent_dim_pi)
        for i in modules.unique().tolist():
            (index,) = (modules == i).nonzero(as_tuple=True)
            latents = latents.index_put((index,), self._expert(i, features[index]))
        return latents

    def _expert(self, index: int, features: Tensor) -> Tensor:
        latent: Tensor = self.experts[index](features)
        return latent


def _gated_sum(gate: Tensor, experts: list[Tensor]) -> Tensor:
    total = gate[:, :1] * experts[0]
    for i, expert in enumerate(experts[1:], start=1):
        total = total + gate[:, i : i + 1] * expert
    return total


class RoutedActorCriticPolicy(ActorCriticPolicy):
    """A Stable-Baselines3 policy made of routed modules (Cloud et al. 2024, sections 4.3 and F).

    ``logits = W (sum over m of gate_m(x) * module_m(x)) + b``, with ``W`` shared by all modules.

    Args:
        modules: the modules' names; one name makes an ordinary network without a gate.
        hidden: hidden sizes of every module and of the gate.
        value_hidden: hidden sizes of the value network.
        activation: a name in :data:`ACTIVATIONS`.
        learned_gate: false fixes the gate at equal weights.
        encoder: hidden sizes of an encoder shared by modules, gate and value network; empty for
            none. Stable-Baselines3's ``features_extractor_class`` takes its place if given.
        detach_encoder: stop the gradient before modules and gate, so that what they learn
            cannot leak into the shared encoder, which then learns from the value loss alone.

    Further keyword arguments are those of Stable-Baselines3's ``ActorCriticPolicy``.
    """

    mlp_extractor: RoutedExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        *,
        modules: Sequence[str] = ("policy",),
        hidden: Sequence[int] = (64, 64),
        value_hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        learned_gate: bool = True,
        encoder: Sequence[int] = (),
        detach_encoder: bool = False,
        **kwargs: Any,
    ) -> None:
        if not modules or len(set(modules)) != len(modules):
            raise ValueError(f"modules must be distinct names, at least one, got {list(modules)}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; the activations are {', '.join(ACTIVATIONS)}")
        for name, sizes in (("hidden", hidden), ("value_hidden", value_hidden)):
            if not sizes or any(size < 1 for size in sizes):
                raise ValueError(f"{name} must be one or more positive layer sizes, got {list(sizes)}")
        self._routed = (tuple(modules), tuple(hidden), tuple(value_hidden), learned_gate, detach_encoder)
        if encoder and "features_extractor_class" not in kwargs:
            kwargs["features_extractor_class"] = MlpEncoder
            kwargs["features_extractor_kwargs"] = {"sizes": tuple(encoder), "activation": activation}
        super().__init__(observation_space, action_space, lr_schedule, activation_fn=ACTIVATIONS[activation], **kwargs)

    def _build_mlp_extractor(self) -> None:
        modules, hidden, value_hidden, learned_gate, detach_encoder = self._routed
        self.mlp_extractor = RoutedExtractor(
            self.features_dim, modules, hidden, value_hidden, self.activation_fn, learned_gate, detach_encoder
        )

    @property
    def module_names(self) -> tuple[str, ...]:
        return self.mlp_extractor.names

    def evaluate_routed(
        self, obs: Tensor, actions: Tensor, routes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Values ``(B,)``, log-probabilities ``(B,)``, entropies ``(B,)`` and gate logits ``(B, M)`` or None.

        One forward pass for samples of every label; ``routes`` ``(B, M + 1)`` weighs their gradients.
        """
        features = self.extract_features(obs)
        latent, gate_logits = self.mlp_extractor.forward_routed(features, routes)
        distribution = self._get_action_dist_from_latent(latent)
        values = self.value_net(self.mlp_extractor.forward_critic(features)).flatten()
        return values, distribution.log_prob(actions), distribution.entropy(), gate_logits

    def gate_logits(self, obs: Tensor) -> Tensor:
        """``(B, M)`` logits of the learned gate."""
        gate = self.mlp_extractor.gate
        if gate is None:
            raise ValueError("this policy has no learned gate")
        features = self.extract_features(obs)
        logits: Tensor = gate(features.detach() if self.mlp_extractor.detach_encoder else features)
        return logits

    def log_prob_of_modules(self, obs: Tensor, actions: Tensor, modules: Tensor) -> Tensor:
        """``(B,)`` log-probability of each action under one module acting alone, ``modules`` ``(B,)`` its number."""
        features = self.extract_features(obs)
        latent = self.mlp_extractor.forward_alone(features, modules)
        log_prob: Tensor = self._get_action_dist_from_latent(latent).log_prob(actions)
        return log_prob

    def module_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that belong to module ``name`` alone, or to the gate for ``"gate"``."""
        if name == "gate":
            gate = self.mlp_extractor.gate
            return [] if gate is None else list(gate.parameters())
        self._check_modules([name])
        return list(self.mlp_extractor.experts[self.module_names.index(name)].parameters())

    # --- steering -------------------------------------------------------------------------------

    @property
    def steering(self) -> dict[str, Any]:
        """The steering in force, as JSON: ``{}`` if none; accepted by :meth:`set_steering`."""
        extractor = self.mlp_extractor
        if extractor.mix is not None:
            return {"mix": dict(zip(self.module_names, extractor.mix, strict=True))}
        return {"ablated": sorted(extractor.ablated)} if extractor.ablated else {}

    def set_steering(self, steering: Mapping[str, Any]) -> None:
        """Put back a steering that :attr:`steering` returned."""
        self.unsteer()
        if "mix" in steering:
            self.steer(steering["mix"])
        elif "ablated" in steering:
            self.ablate(*steering["ablated"])

    def steer(self, choice: str | Mapping[str, float]) -> None:
        """Use one module, or a fixed mix of modules, in place of the gate.

        Raises:
            ValueError: for an unknown module, or weights that are negative or do not sum to 1.
        """
        weights = {choice: 1.0} if isinstance(choice, str) else dict(choice)
        self._check_modules(weights)
        if any(not weight >= 0 for weight in weights.values()) or abs(sum(weights.values()) - 1) > 1e-6:
            raise ValueError(f"steering weights must be at least 0 and sum to 1, got {weights}")
        self.mlp_extractor.ablated = frozenset()
        self.mlp_extractor.mix = tuple(float(weights.get(name, 0.0)) for name in self.module_names)

    def ablate(self, *names: str) -> None:
        """Delete modules: the gate renormalises over those that remain.

        Raises:
            ValueError: for an unknown module, or if none would remain.
        """
        self._check_modules(names)
        if set(names) >= set(self.module_names):
            raise ValueError(f"cannot ablate {list(names)}: no module of {list(self.module_names)} would remain")
        self.mlp_extractor.mix = None
        self.mlp_extractor.ablated = frozenset(names)

    def unsteer(self) -> None:
        """Return to the gate over all modules."""
        self.mlp_extractor.mix, self.mlp_extractor.ablated = None, frozenset()

    @contextmanager
    def steered(
        self, choice: str | Mapping[str, float] | None = None, *, ablate: str | Sequence[str] = ()
    ) -> Iterator[None]:
        """Steer (or ablate, or neither: unsteered) within the block; then the former steering is back."""
        before = self.steering
        try:
            if choice is not None:
                self.steer(choice)
            elif ablate:
                self.ablate(*([ablate] if isinstance(ablate, str) else ablate))
            else:
                self.unsteer()
            yield
        finally:
            self.set_steering(before)

    def _check_modules(self, names: Mapping[str, float] | Sequence[str]) -> None:
        for name in names:
            if name not in self.module_names:
                raise ValueError(f"unknown module {name!r}; the modules are {', '.join(self.module_names)}")
