"""The routed actor-critic: one module per behaviour, a gate over them, a shared output layer, a value network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.optim import Adam

from routed_rl.rl.networks import ACTIVATIONS, MlpEncoder, PointwiseConv, RoutedExtractor, mlp


class UncheckedCategorical(CategoricalDistribution):
    """Stable-Baselines3's distribution over discrete actions without torch's checks of every argument: on a small
    network they cost more than the sampling."""

    def proba_distribution(self, action_logits: Tensor) -> UncheckedCategorical:
        self.distribution = Categorical(logits=action_logits, validate_args=False)
        return self


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

    Further keyword arguments are those of Stable-Baselines3's ``ActorCriticPolicy``, but for ``activation_fn``,
    ``net_arch`` and ``share_features_extractor``.

    Raises:
        ValueError: for an option out of range, or an action space of other than one dimension.
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
        for name, sizes in (("hidden", hidden), ("value_hidden", value_hidden), ("encoder", encoder)):
            if (not sizes and name != "encoder") or any(size < 1 for size in sizes):
                raise ValueError(f"{name} must be one or more positive layer sizes, got {list(sizes)}")
        if "activation_fn" in kwargs:
            raise ValueError(f"name the activation by activation=, one of {', '.join(ACTIVATIONS)}, not activation_fn=")
        if not kwargs.get("share_features_extractor", True):
            raise ValueError("share_features_extractor=False is not supported: modules and value network share theirs")
        if isinstance(action_space, spaces.Box) and len(action_space.shape) != 1:
            raise ValueError(f"a Box action space must have one dimension, got shape {action_space.shape}")
        self._names_wanted = tuple(modules)
        self._hidden, self._value_hidden = tuple(hidden), tuple(value_hidden)
        self._learned_gate, self._detach_encoder = learned_gate and len(modules) > 1, detach_encoder
        if encoder and "features_extractor_class" not in kwargs:
            kwargs["features_extractor_class"] = MlpEncoder
            kwargs["features_extractor_kwargs"] = {"sizes": tuple(encoder), "activation": activation}
        if kwargs.get("optimizer_class", Adam) is Adam and "optimizer_kwargs" not in kwargs:
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}  # Stable-Baselines3's, but in one operation
        super().__init__(observation_space, action_space, lr_schedule, activation_fn=ACTIVATIONS[activation], **kwargs)
        if isinstance(action_space, spaces.Discrete):
            self.action_dist = UncheckedCategorical(int(action_space.n))

    def _build_mlp_extractor(self) -> None:
        names = self._names_wanted
        self.mlp_extractor = RoutedExtractor(
            {name: self._module() for name in names},
            self._gate(len(names)) if self._learned_gate else None,
            self._value(),
            (self._hidden[-1], self._value_hidden[-1]),
            detach_encoder=self._detach_encoder,
        )

    def _module(self) -> nn.Module:
        return mlp((self.features_dim, *self._hidden), self.activation_fn)

    def _gate(self, modules: int) -> nn.Module:
        return nn.Sequential(self._module(), nn.Linear(self._hidden[-1], modules))

    def _value(self) -> nn.Module:
        return mlp((self.features_dim, *self._value_hidden), self.activation_fn)

    def legal(self, actions: Tensor) -> np.ndarray:
        """Sampled actions ``(B, …)`` as the environment takes them: clipped to the bounds of a Box."""
        array: np.ndarray = actions.cpu().numpy()
        if isinstance(self.action_space, spaces.Box):
            array = np.clip(array, self.action_space.low, self.action_space.high)
        return array

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

    def get_distribution(self, obs: Tensor) -> Distribution:
        """The distribution over actions as the policy is steered now."""
        extractor = self.mlp_extractor
        if not extractor.avoid and extractor.temperature == 1:
            return super().get_distribution(obs)
        features = self.extract_features(obs)
        logits = self.action_net(extractor.forward_actor(features))
        gate = extractor.gate_weights(features)
        for module, strength in extractor.avoid.items():
            avoided = self.action_net(extractor.forward_alone(features, module)).softmax(dim=-1)
            logits = logits - strength * gate[:, module : module + 1] * avoided
        assert isinstance(self.action_dist, CategoricalDistribution)
        return self.action_dist.proba_distribution(action_logits=logits / extractor.temperature)

    def gate_logits(self, obs: Tensor) -> Tensor:
        """``(B, M)`` logits of the learned gate."""
        gate = self.mlp_extractor.gate
        if gate is None:
            raise ValueError("this policy has no learned gate")
        features = self.extract_features(obs)
        logits: Tensor = gate(features.detach() if self.mlp_extractor.detach_encoder else features)
        return logits

    def log_prob_of_modules(self, obs: Tensor, actions: Tensor) -> Tensor:
        """``(M, B)`` log-probabilities of actions ``(M, B, …)`` in observations ``(M, B, …)``, those of row ``m`` under
        module ``m`` acting alone."""
        features = self.extract_features(obs.flatten(0, 1)).unflatten(0, obs.shape[:2])
        latents = [self.mlp_extractor.forward_alone(rows, module) for module, rows in enumerate(features)]
        log_probs: Tensor = self._get_action_dist_from_latent(torch.cat(latents)).log_prob(actions.flatten(0, 1))
        return log_probs.view(obs.shape[:2])

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
        steering: dict[str, Any] = {}
        if extractor.ablated:
            steering["ablated"] = sorted(extractor.ablated)
        if extractor.mix is not None:
            steering["mix"] = dict(zip(self.module_names, extractor.mix, strict=True))
        if extractor.avoid:
            steering["avoid"] = {self.module_names[i]: strength for i, strength in extractor.avoid.items()}
        if extractor.temperature != 1:
            steering["temperature"] = extractor.temperature
        return steering

    def set_steering(self, steering: Mapping[str, Any]) -> None:
        """Put back a steering that :attr:`steering` returned."""
        self.unsteer()
        if "ablated" in steering:
            self.ablate(*steering["ablated"])
        if "mix" in steering:
            self.steer(steering["mix"], avoid=steering.get("avoid", {}), temperature=steering.get("temperature", 1.0))

    def steer(
        self, choice: str | Mapping[str, float], *, avoid: Mapping[str, float] | None = None, temperature: float = 1.0
    ) -> None:
        """Use one module, or a fixed mix of modules, in place of the gate.

        Args:
            choice: a module, or weights of modules that sum to 1.
            avoid: modules that the choice is pushed away from, and how strongly (contrastive steering):
                ``log p(a) = log p_choice(a) - sum over k of avoid_k * gate_k(x) * p_k(a) + const``. It is the avoided
                action's probability that counts, which is bounded, not its logarithm; and the gate's weight says
                whether the avoided behaviour is near, so that elsewhere nothing changes (docs/oversight.md).
            temperature: what logits are divided by: below 1 sharpens, without contrast.

        Raises:
            ValueError: for an unknown or ablated module, weights that are negative or do not sum to 1, a strength or
                temperature out of range, or either of these for actions that are not discrete.
        """
        weights = {choice: 1.0} if isinstance(choice, str) else dict(choice)
        self._check_modules(weights)
        if any(not weight >= 0 for weight in weights.values()) or abs(sum(weights.values()) - 1) > 1e-6:
            raise ValueError(f"steering weights must be at least 0 and sum to 1, got {weights}")
        if gone := [name for name, weight in weights.items() if weight and name in self.mlp_extractor.ablated]:
            raise ValueError(f"cannot steer to {gone}: ablated; unsteer() brings back what was ablated")
        strengths = dict(avoid or {})
        self._check_modules(strengths)
        if bad := {name: strength for name, strength in strengths.items() if not 0 <= strength < float("inf")}:
            raise ValueError(f"strengths of avoid must be finite numbers, at least 0, got {bad}")
        if both := [name for name in strengths if weights.get(name)]:
            raise ValueError(f"cannot both choose and avoid {both}")
        if gone := [name for name in strengths if name in self.mlp_extractor.ablated]:
            raise ValueError(f"cannot avoid {gone}: ablated; unsteer() brings back what was ablated")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
        if (strengths or temperature != 1) and not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"avoid and temperature need discrete actions, this policy has {self.action_space}")
        extractor = self.mlp_extractor
        extractor.mix = tuple(float(weights.get(name, 0.0)) for name in self.module_names)
        extractor.avoid = {self.module_names.index(name): float(strength) for name, strength in strengths.items()}
        extractor.temperature = float(temperature)

    def ablate(self, *names: str) -> None:
        """Delete modules, besides those deleted before: the gate renormalises over those that remain.

        Raises:
            ValueError: for an unknown module, for none at all, or if none would remain.
        """
        if not names:
            raise ValueError("ablate() needs the name of at least one module")
        self._check_modules(names)
        ablated = self.mlp_extractor.ablated.union(names)
        if len(ablated) == len(self.module_names):
            raise ValueError(f"cannot ablate {list(names)}: no module of {list(self.module_names)} would remain")
        self.mlp_extractor.unsteer()
        self.mlp_extractor.ablated = ablated

    def unsteer(self) -> None:
        """Return to the gate over all modules, also those that were ablated."""
        self.mlp_extractor.unsteer()

    @contextmanager
    def steered(
        self, choice: str | Mapping[str, float] | None = None, *, ablate: str | Sequence[str] = (), **options: Any
    ) -> Iterator[None]:
        """Steer (or ablate, or neither: unsteered) within the block; then the former steering is back. ``options`` are
        those of :meth:`steer`."""
        before = self.steering
        try:
            if choice is not None:
                self.steer(choice, **options)
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


class PaperPolicy(RoutedActorCriticPolicy):
    """The networks of Cloud et al. 2024, section F, for flat observations made of binary planes.

    Gate and value network first mix the planes by a 1×1 convolution; for two modules the gate is the sigmoid of one
    logit; the value network has no nonlinearity, as in the public code; all biases start at zero.

    Args:
        planes: how many planes an observation holds.

    Further keyword arguments are those of :class:`RoutedActorCriticPolicy`.
    """

    def __init__(
        self,
        *args: Any,
        planes: int = 4,
        hidden: Sequence[int] = (256, 256),
        value_hidden: Sequence[int] = (256, 32),
        **kwargs: Any,
    ) -> None:
        self._planes = planes
        # torch's defaults, not Stable-Baselines3's
        if kwargs.get("optimizer_class", Adam) is Adam:
            kwargs = {"optimizer_kwargs": {"eps": 1e-8, "fused": True}, **kwargs}
        kwargs = {"ortho_init": False, **kwargs}
        super().__init__(*args, hidden=hidden, value_hidden=value_hidden, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _gate(self, modules: int) -> nn.Module:
        last = nn.Linear(self._hidden[-1], modules - 1)
        return nn.Sequential(self._mix_planes(self._planes), self._module(), last, nn.ConstantPad1d((1, 0), 0.0))

    def _value(self) -> nn.Module:
        channels = 16
        sizes = (channels * self.features_dim // self._planes, *self._value_hidden)
        return nn.Sequential(self._mix_planes(channels), mlp(sizes, nn.Identity))

    def _mix_planes(self, channels: int) -> nn.Module:
        """A 1×1 convolution over the cells of a flat observation, flat again."""
        planes = nn.Unflatten(1, (self._planes, self.features_dim // self._planes))
        return nn.Sequential(planes, PointwiseConv(self._planes, channels, 1), nn.Flatten())
