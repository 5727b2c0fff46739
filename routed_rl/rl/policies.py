"""The routed actor-critic: one module per behaviour, a gate, a shared output layer and a value network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.optim import Adam

from routed_rl.paths import expanded
from routed_rl.rl.encoding import CLASSES, decode, decode_space, encode, encode_space, same_architecture
from routed_rl.rl.networks import ACTIVATIONS, MlpEncoder, RoutedExtractor, mlp
from routed_rl.runs import CheckpointError, read_checkpoint, write_checkpoint
from routed_rl.runs.files import StrPath


class UncheckedCategorical(CategoricalDistribution):
    """Stable-Baselines3's distribution over discrete actions, without torch's checks of its arguments.

    With a small network, these checks cost more than the sampling.
    """

    def proba_distribution(self, action_logits: Tensor) -> UncheckedCategorical:
        self.distribution = Categorical(logits=action_logits, validate_args=False)
        return self


UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "net_arch": (None, "use hidden= and value_hidden="),
    "activation_fn": (None, f"use activation=, one of {', '.join(ACTIVATIONS)}"),
    "share_features_extractor": (True, "modules and value network share one encoder"),
    "use_sde": (False, "state-dependent exploration cannot be routed"),
    "full_std": (True, "it belongs to state-dependent exploration"),
    "use_expln": (False, "it belongs to state-dependent exploration"),
    "squash_output": (False, "it belongs to state-dependent exploration"),
}
"""Argument of Stable-Baselines3's policy that ours refuses → the only value that it may have, and advice."""


class RoutedActorCriticPolicy(ActorCriticPolicy):
    """A Stable-Baselines3 policy made of routed modules (Cloud et al. 2024, sections 4.3 and F).

    ``logits = W (sum over m of gate_m(x) * module_m(x)) + b``. All modules share ``W`` and ``b``.

    Args:
        modules: the names of the modules. A single name gives an ordinary network without a gate.
        hidden: hidden sizes of every module and of the gate.
        value_hidden: hidden sizes of the value network.
        activation: a name in :data:`ACTIVATIONS`.
        learned_gate: whether the gate is learned. With False it gives all modules equal weights.
        encoder: hidden sizes of an encoder that modules, gate and value network share; empty for no encoder.
            Or give Stable-Baselines3's ``features_extractor_class``.
        detach_encoder: stop the gradient before modules and gate. Then only the value loss trains the shared encoder,
            and nothing that modules or gate learn can leak into it.

    Other keyword arguments are those of Stable-Baselines3's ``ActorCriticPolicy``, except those in
    :data:`UNSUPPORTED`.

    Raises:
        ValueError: for an option out of range, or a Box action space with more or fewer than one dimension.
    """

    mlp_extractor: RoutedExtractor

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        policy = super().__new__(cls)
        policy._arguments = kwargs  # recorded here, so that subclasses with arguments of their own can be saved too
        return policy

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
            raise ValueError(f"modules must be at least one name, all distinct, got {list(modules)}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; the activations are {', '.join(ACTIVATIONS)}")
        for name, sizes in (("hidden", hidden), ("value_hidden", value_hidden), ("encoder", encoder)):
            whole = isinstance(sizes, (list, tuple)) and all(isinstance(size, int) and size >= 1 for size in sizes)
            if not whole or (not sizes and name != "encoder"):
                raise ValueError(f"{name} must be one or more positive layer sizes, got {sizes!r}")
        for name, (only, advice) in UNSUPPORTED.items():
            if kwargs.pop(name, only) is not only:
                raise ValueError(f"the policy has no {name}, got {self._arguments[name]!r}: {advice}")
        if "log_std_init" in kwargs and not isinstance(action_space, spaces.Box):
            raise ValueError(f"log_std_init={kwargs['log_std_init']!r} needs a Box action space, got {action_space}")
        if "features_extractor_kwargs" in kwargs and "features_extractor_class" not in kwargs:
            given = kwargs["features_extractor_kwargs"]
            raise ValueError(f"features_extractor_kwargs={given!r} needs features_extractor_class")
        if encoder and "features_extractor_class" in kwargs:
            raise ValueError(
                f"encoder={encoder!r} and features_extractor_class are two encoders: leave out one of them"
            )
        if "lr" in (kwargs.get("optimizer_kwargs") or {}):
            raise ValueError(
                f"optimizer_kwargs must not contain lr, got {kwargs['optimizer_kwargs']!r}: the learner sets it"
            )
        if isinstance(action_space, spaces.Box) and len(action_space.shape) != 1:
            raise ValueError(f"a Box action space must have one dimension, got shape {action_space.shape}")
        self._names_wanted = tuple(modules)
        self._hidden, self._value_hidden = tuple(hidden), tuple(value_hidden)
        self._learned_gate, self._detach_encoder = learned_gate and len(modules) > 1, detach_encoder
        if encoder:
            kwargs["features_extractor_class"] = MlpEncoder
            kwargs["features_extractor_kwargs"] = {"sizes": tuple(encoder), "activation": activation}
        if kwargs.get("optimizer_class", Adam) is Adam and "optimizer_kwargs" not in kwargs:
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}  # Stable-Baselines3's default, but fused
        super().__init__(observation_space, action_space, lr_schedule, activation_fn=ACTIVATIONS[activation], **kwargs)
        if isinstance(action_space, spaces.Discrete):
            self.action_dist = UncheckedCategorical(int(action_space.n))

    def save(self, path: StrPath) -> None:
        """Write weights, constructor arguments and steering to a checkpoint directory (safetensors and JSON).

        Raises:
            ValueError: if an argument cannot be saved (see :mod:`routed_rl.rl.encoding`).
        """
        described = {
            "policy": encode("policy", type(self)),
            "policy_arguments": {name: encode(name, value) for name, value in self._arguments.items()},
            "observation_space": encode_space(self.observation_space),
            "action_space": encode_space(self.action_space),
            "steering": self.steering,
        }
        expanded(path).parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, self.state_dict(), described)

    @classmethod
    def load(cls, path: StrPath, device: torch.device | str = "auto") -> Self:
        """Return the policy that :meth:`save` wrote, ready to act. It has a new optimizer, with learning rate 0.

        Raises:
            CheckpointError: if the checkpoint is corrupt, or does not hold a policy of this class.
        """
        checkpoint = read_checkpoint(path)
        try:
            found, arguments = decode(checkpoint.meta["policy"]), decode(checkpoint.meta["policy_arguments"])
            saved_spaces = [decode_space(checkpoint.meta[name]) for name in ("observation_space", "action_space")]
            if not issubclass(found, cls):
                raise ValueError(f"it holds a {found.__name__}")
            policy: Self = found(*saved_spaces, cls._dummy_schedule, **arguments)
            with same_architecture(path):
                policy.load_state_dict(checkpoint.tensors)
            policy.set_steering(checkpoint.meta["steering"])
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} does not describe a {cls.__name__}: {error!r}") from error
        return policy.to(get_device(device))

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
        """Return sampled actions ``(B, …)`` as the environment accepts them: numpy, clipped to the bounds of a Box."""
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
        """Return values ``(B,)``, log-probabilities ``(B,)``, entropies ``(B,)`` and gate logits ``(B, M)`` or None.

        One forward pass serves samples of any label. ``routes`` ``(B, M + 1)`` are the route weights of each sample.
        """
        features = self.extract_features(obs)
        latent, gate_logits = self.mlp_extractor.forward_routed(features, routes)
        distribution = self._get_action_dist_from_latent(latent)
        values = self.value_net(self.mlp_extractor.forward_critic(features)).flatten()
        return values, distribution.log_prob(actions), distribution.entropy(), gate_logits

    def get_distribution(self, obs: Tensor) -> Distribution:
        """Return the distribution over actions, with the current steering."""
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
        """Return the logits ``(B, M)`` of the learned gate; raise a ValueError if the policy has none."""
        gate = self.mlp_extractor.gate
        if gate is None:
            raise ValueError("gate_logits needs a policy with a learned gate and several modules, this one has no gate")
        features = self.extract_features(obs)
        logits: Tensor = gate(features.detach() if self.mlp_extractor.detach_encoder else features)
        return logits

    def log_prob_of_modules(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Return log-probabilities ``(M, B)`` of actions ``(M, B, …)`` given observations ``(M, B, …)``.

        Row ``m`` is computed with module ``m`` acting alone.
        """
        features = self.extract_features(obs.flatten(0, 1)).unflatten(0, obs.shape[:2])
        latents = [self.mlp_extractor.forward_alone(rows, module) for module, rows in enumerate(features)]
        log_probs: Tensor = self._get_action_dist_from_latent(torch.cat(latents)).log_prob(actions.flatten(0, 1))
        return log_probs.view(obs.shape[:2])

    def module_parameters(self, name: str) -> list[nn.Parameter]:
        """Return the parameters that only module ``name`` uses; for ``"gate"``, those of the gate."""
        if name == "gate":
            gate = self.mlp_extractor.gate
            return [] if gate is None else list(gate.parameters())
        self._check_modules([name])
        return list(self.mlp_extractor.experts[self.module_names.index(name)].parameters())

    # --- steering -------------------------------------------------------------------------------

    @property
    def steering(self) -> dict[str, Any]:
        """The current steering as JSON, ``{}`` if there is none; :meth:`set_steering` accepts it."""
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
        """Restore a steering that :attr:`steering` returned."""
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
            choice: a module, or module → weight with weights that sum to 1.
            avoid: module → strength with which the policy avoids the actions of this module (contrastive steering):
                ``log p(a) = log p_choice(a) - sum over k of avoid_k * gate_k(x) * p_k(a) + const``. The formula
                subtracts the probability ``p_k(a)``, not its logarithm, because the probability is bounded. Where the
                gate gives the avoided module no weight, nothing changes (docs/oversight.md).
            temperature: divides the logits; below 1 it sharpens the distribution.

        Raises:
            ValueError: for an unknown or ablated module; weights that are negative or do not sum to 1; a strength or
                temperature out of range; or ``avoid`` or ``temperature`` with actions that are not discrete.
        """
        weights = {choice: 1.0} if isinstance(choice, str) else dict(choice)
        self._check_modules(weights)
        if any(not weight >= 0 for weight in weights.values()) or abs(sum(weights.values()) - 1) > 1e-6:
            raise ValueError(f"steering weights must be at least 0 and sum to 1, got {weights}")
        if gone := [name for name, weight in weights.items() if weight and name in self.mlp_extractor.ablated]:
            raise ValueError(f"cannot steer to {gone}, which are ablated; unsteer() restores ablated modules")
        strengths = dict(avoid or {})
        self._check_modules(strengths)
        if bad := {name: strength for name, strength in strengths.items() if not 0 <= strength < float("inf")}:
            raise ValueError(f"the strengths in avoid must be finite numbers, at least 0, got {bad}")
        if both := [name for name in strengths if weights.get(name)]:
            raise ValueError(f"cannot both choose and avoid {both}: name each module only once")
        if gone := [name for name in strengths if name in self.mlp_extractor.ablated]:
            raise ValueError(f"cannot avoid {gone}, which are ablated; unsteer() restores ablated modules")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
        if (strengths or temperature != 1) and not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"avoid and temperature need discrete actions, this policy has {self.action_space}")
        extractor = self.mlp_extractor
        extractor.mix = tuple(float(weights.get(name, 0.0)) for name in self.module_names)
        extractor.avoid = {self.module_names.index(name): float(strength) for name, strength in strengths.items()}
        extractor.temperature = float(temperature)

    def ablate(self, *names: str) -> None:
        """Ablate modules, in addition to those ablated before. The gate renormalises over the remaining modules.

        Raises:
            ValueError: for an unknown module, if no module is named, or if no module would remain.
        """
        if not names:
            raise ValueError(
                f"ablate() needs the name of at least one module; the modules are {', '.join(self.module_names)}"
            )
        self._check_modules(names)
        ablated = self.mlp_extractor.ablated.union(names)
        if len(ablated) == len(self.module_names):
            raise ValueError(f"cannot ablate {list(names)}: no module of {list(self.module_names)} would remain")
        self.mlp_extractor.unsteer()
        self.mlp_extractor.ablated = ablated

    def unsteer(self) -> None:
        """Undo all steering and ablation: the gate weights all modules again."""
        self.mlp_extractor.unsteer()

    @contextmanager
    def steered(
        self, choice: str | Mapping[str, float] | None = None, *, ablate: str | Sequence[str] = (), **options: Any
    ) -> Iterator[None]:
        """Within the block, steer to ``choice``, or ablate modules, or unsteer if neither is given.

        After the block the former steering is restored. ``options`` are those of :meth:`steer`.
        """
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


CLASSES["MlpPolicy"] = RoutedActorCriticPolicy
