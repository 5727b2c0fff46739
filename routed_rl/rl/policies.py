"""The routed actor-critic: one module per behaviour, a gate, a shared output layer and a value network."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, BinaryIO, ClassVar, Self, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.optim import Adam, Optimizer

from routed_rl.rl.architecture import activation_name, check_sde, layer_sizes
from routed_rl.rl.arguments import check_known
from routed_rl.rl.encoding import CLASSES, decode, decode_space, encode, encode_space, same_architecture
from routed_rl.rl.networks import ACTIVATIONS, MlpEncoder, RoutedExtractor, mlp
from routed_rl.rl.observations import SINGLE, Observations, check_extractor
from routed_rl.rl.steering import SteerablePolicy
from routed_rl.runs import CheckpointError
from routed_rl.runs.files import StrPath
from routed_rl.runs.packed import read_anywhere, write_anywhere


class UncheckedCategorical(CategoricalDistribution):
    """Stable-Baselines3's distribution over discrete actions, without torch's checks of its arguments.

    With a small network, these checks cost more than the sampling.
    """

    def proba_distribution(self, action_logits: Tensor) -> UncheckedCategorical:
        self.distribution = Categorical(logits=action_logits, validate_args=False)
        return self

    def sample(self) -> Tensor:
        probs = self.distribution.probs
        return (probs / torch.empty_like(probs).exponential_()).argmax(dim=-1)


class RoutedActorCriticPolicy(SteerablePolicy, ActorCriticPolicy):
    """A Stable-Baselines3 policy made of routed modules (Cloud et al. 2024, sections 4.3 and F).

    ``logits = W (sum over m of gate_m(x) * module_m(x)) + b``. All modules share ``W`` and ``b``.

    Args:
        modules: the names of the modules. A single name gives an ordinary network without a gate.
        hidden: hidden sizes of every module and of the gate. A single module may have none.
        value_hidden: hidden sizes of the value network; empty for a linear one.
        activation: a name in :data:`ACTIVATIONS`.
        net_arch, activation_fn: Stable-Baselines3's names of these three settings. ``"pi"`` is ``hidden``.
        learned_gate: whether the gate is learned. With False it gives all modules equal weights.
        encoder: hidden sizes of an encoder that modules, gate and value network share; empty for no encoder.
            Or give Stable-Baselines3's ``features_extractor_class``.
        detach_encoder: stop the gradient before modules and gate. Then only the value loss trains the shared encoder,
            and nothing that modules or gate learn can leak into it.
        share_features_extractor: whether the value network reads the encoder of modules and gate, or one of its own.

    Other keyword arguments are those of Stable-Baselines3's ``ActorCriticPolicy``.

    Raises:
        ValueError: for an option out of range, or observations that the policy's encoder cannot read.
    """

    mlp_extractor: RoutedExtractor
    takes: ClassVar[tuple[type[spaces.Space[Any]], ...]] = SINGLE
    """Kinds of observation space."""
    default_encoder: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    """The ``features_extractor_class`` if none is given."""
    gamma: float | None = None
    """Discount factor of the learner that the policy belongs to; None: it belongs to none."""

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
        net_arch: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        activation_fn: type[nn.Module] | None = None,
        encoder: Sequence[int] = (),
        detach_encoder: bool = False,
        share_features_extractor: bool = True,
        **kwargs: Any,
    ) -> None:
        if net_arch is not None:
            hidden, value_hidden = layer_sizes(net_arch, self._arguments)
        if activation_fn is not None:
            activation = activation_name(activation_fn, self._arguments)
        if not modules or len(set(modules)) != len(modules):
            raise ValueError(f"modules must be at least one name, all distinct, got {list(modules)}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; the activations are {', '.join(ACTIVATIONS)}")
        for name, sizes in (("hidden", hidden), ("value_hidden", value_hidden), ("encoder", encoder)):
            whole = isinstance(sizes, (list, tuple)) and all(isinstance(size, int) and size >= 1 for size in sizes)
            if not whole:
                raise ValueError(f"{name} must be a list of positive layer sizes, got {sizes!r}")
        if not hidden and len(modules) > 1:
            raise ValueError(f"hidden={hidden!r} leaves nothing to route: {len(modules)} modules need at least a layer")
        check_known("the policy (policy_kwargs)", kwargs, ActorCriticPolicy, RoutedActorCriticPolicy, type(self))
        if "log_std_init" in kwargs and not isinstance(action_space, spaces.Box):
            raise ValueError(f"log_std_init={kwargs['log_std_init']!r} needs a Box action space, got {action_space}")
        check_sde(kwargs, action_space)
        if not isinstance(observation_space, self.takes):
            raise ValueError(
                f"policy {type(self).__name__} cannot read a {type(observation_space).__name__} of observations: "
                "use MultiInputPolicy for a Dict, MlpPolicy for anything else"
            )
        extractor = kwargs.setdefault("features_extractor_class", self.default_encoder)
        if kwargs.get("features_extractor_kwargs") and extractor is FlattenExtractor:
            given = kwargs["features_extractor_kwargs"]
            raise ValueError(f"features_extractor_kwargs={given!r} needs features_extractor_class")
        if encoder and extractor is not FlattenExtractor:
            raise ValueError(f"encoder={encoder!r} and {extractor.__name__} are two encoders: leave out one of them")
        if detach_encoder and not share_features_extractor:
            raise ValueError("detach_encoder=True needs share_features_extractor=True: else nothing trains the encoder")
        check_extractor(extractor, observation_space, kwargs.get("normalize_images", True))
        if "lr" in (kwargs.get("optimizer_kwargs") or {}):
            raise ValueError(
                f"optimizer_kwargs must not contain lr, got {kwargs['optimizer_kwargs']!r}: the learner sets it"
            )
        optimizer: type[Optimizer] = kwargs.get("optimizer_class", Adam)
        if not isinstance(optimizer, type) or not issubclass(optimizer, Optimizer):
            raise ValueError(f"optimizer_class must be a class, such as torch.optim.Adam, got {optimizer!r}")
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(f"optimizer_class={optimizer.__name__} needs the loss as a function: use another, as Adam")
        for name, taker in {"features_extractor": extractor, "optimizer": optimizer}.items():
            check_known(f"{taker.__name__} ({name}_kwargs)", kwargs.get(f"{name}_kwargs") or {}, taker)
        self._names_wanted = tuple(modules)
        self._hidden, self._value_hidden = tuple(hidden), tuple(value_hidden)
        self._learned_gate, self._detach_encoder = learned_gate and len(modules) > 1, detach_encoder
        if encoder:
            kwargs["features_extractor_class"] = MlpEncoder
            kwargs["features_extractor_kwargs"] = {"sizes": tuple(encoder), "activation": activation}
        if kwargs.get("optimizer_class", Adam) is Adam and kwargs.get("optimizer_kwargs") is None:
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}  # Stable-Baselines3's default, but fused
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": list(hidden), "vf": list(value_hidden)},
            activation_fn=ACTIVATIONS[activation],
            share_features_extractor=share_features_extractor,
            **kwargs,
        )
        self.observations = Observations(observation_space)
        if isinstance(action_space, spaces.Discrete):
            self.action_dist = UncheckedCategorical(int(action_space.n))

    def save(self, path: StrPath | BinaryIO) -> None:
        """Write weights, constructor arguments and steering to a checkpoint directory (safetensors and JSON).

        A path that ends in ``.zip``, ``.pkl``, ``.pth`` or ``.pt``, or an open file, gets an archive of its files.

        Raises:
            ValueError: if an argument cannot be saved (see ``routed_rl.rl.encoding``).
        """
        described = {
            "policy": encode("policy", type(self)),
            "policy_arguments": {name: encode(name, value) for name, value in self._arguments.items()},
            "observation_space": encode_space(self.observation_space),
            "action_space": encode_space(self.action_space),
            "steering": self.steering,
        }
        write_anywhere(path, self.state_dict(), described)

    @classmethod
    def load(cls, path: StrPath | BinaryIO, device: torch.device | str = "auto") -> Self:
        """Return the policy that :meth:`save` wrote, ready to act. It has a new optimizer, with learning rate 0.

        Raises:
            CheckpointError: if the checkpoint is corrupt, or does not hold a policy of this class.
        """
        checkpoint = read_anywhere(path)
        try:
            found, arguments = decode(checkpoint.meta["policy"]), decode(checkpoint.meta["policy_arguments"])
            saved_spaces = [decode_space(checkpoint.meta[name]) for name in ("observation_space", "action_space")]
            if not issubclass(found, cls):
                raise ValueError(f"it holds a {found.__name__}")
            policy: Self = found(*saved_spaces, cls._dummy_schedule, **arguments)
            with same_architecture(str(path)):
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
            ((self.features_dim, *self._hidden)[-1], (self.features_dim, *self._value_hidden)[-1]),
            detach_encoder=self._detach_encoder,
        )

    def _module(self) -> nn.Module:
        return mlp((self.features_dim, *self._hidden), self.activation_fn)

    def _gate(self, modules: int) -> nn.Module:
        return nn.Sequential(self._module(), nn.Linear(self._hidden[-1], modules))

    def _value(self) -> nn.Module:
        return mlp((self.features_dim, *self._value_hidden), self.activation_fn)

    def legal(self, actions: Tensor) -> np.ndarray:
        """Return sampled actions ``(B, …)`` as numpy, in the bounds and the shape that the environment takes."""
        array: np.ndarray = actions.cpu().numpy().reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        if self.squash_output:
            return self.unscale_action(array)
        if isinstance(self.action_space, spaces.Box):
            return np.clip(array, self.action_space.low, self.action_space.high)
        return self._numbered(array)

    def _numbered(self, actions: np.ndarray) -> np.ndarray:
        """Return actions that the networks number from 0 as the action space numbers them."""
        return np.asarray(actions + getattr(self.action_space, "start", 0))

    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions for observations as an environment gives them; see Stable-Baselines3."""
        actions, state = super().predict(*args, **kwargs)
        return self._numbered(actions), state

    def evaluate_routed(
        self, obs: Tensor, actions: Tensor, routes: Tensor, players: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return values ``(B,)``, log-probabilities ``(B,)``, entropies ``(B,)`` and gate logits ``(B, M)`` or None.

        One forward pass serves samples of any label. ``routes`` ``(B, M + 1)`` are the route weights of each sample.
        ``players`` ``(B,)`` are the modules that acted alone, ``M`` for the gate; with None the gate acted everywhere.
        """
        features = value_features = self._features(obs)
        if not self.share_features_extractor:
            value_features = self._features(obs, self.vf_features_extractor)
        latent, gate_logits = self.mlp_extractor.forward_routed(features, routes, players)
        distribution = self._get_action_dist_from_latent(latent)
        values = self.value_net(self.mlp_extractor.forward_critic(value_features)).flatten()
        log_probs, entropies = distribution.log_prob(actions), distribution.entropy()
        # Squashed actions have no entropy in closed form; as in Stable-Baselines3, that of their samples is estimated.
        return values, log_probs, -log_probs if entropies is None else entropies, gate_logits

    @contextmanager
    def own_noise(self) -> Iterator[None]:
        """Within the block, state-dependent exploration has noise of its own; afterwards it goes on with the old."""
        kept = self.action_dist
        self.action_dist = copy(kept)
        try:
            yield
        finally:
            self.action_dist = kept

    def renew_noise(self, rows: np.ndarray) -> None:
        """Draw the noise of state-dependent exploration, if there is any, for some environments: ``rows`` ``(E,)``."""
        if not self.use_sde or not rows.any():
            return
        noise, going = cast(StateDependentNoiseDistribution, self.action_dist), torch.from_numpy(~rows)
        before = noise.exploration_matrices
        self.reset_noise(len(rows))
        if going.any():
            noise.exploration_matrices[going] = before[going]

    def _features(self, obs: PyTorchObs, encoder: BaseFeaturesExtractor | None = None) -> Tensor:
        """Return the features ``(B, F)`` that an encoder computes, by default the one of modules and gate."""
        encoder = encoder or self.pi_features_extractor
        features: Tensor = BaseModel.extract_features(self, self.observations.unpack(obs), encoder)
        return features

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Return the value estimates ``(B, 1)`` of observations."""
        return super().predict_values(self.observations.unpack(obs))

    def get_distribution(self, obs: PyTorchObs, players: Tensor | None = None) -> Distribution:
        """Return the distribution over actions, with the current steering.

        Where ``players`` ``(B,)`` are given, steering is ignored: a module acts alone, or for ``M`` the gate acts.
        """
        extractor, features = self.mlp_extractor, self._features(obs)
        if players is not None:
            return self._get_action_dist_from_latent(extractor.forward_players(features, players))
        if not extractor.avoid and extractor.temperature == 1:
            return self._get_action_dist_from_latent(extractor.forward_actor(features))
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
        features = self._features(obs)
        logits: Tensor = gate(features.detach() if self.mlp_extractor.detach_encoder else features)
        return logits

    def gate_weights(self, obs: PyTorchObs) -> Tensor:
        """Return the gate's weights ``(B, M)`` of the modules, 0 for ablated ones; ``steer`` does not change them."""
        return self.mlp_extractor.gate_weights(self._features(obs))

    def log_prob_of_modules(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Return log-probabilities ``(M, B)`` of actions ``(M, B, …)`` given observations ``(M, B, …)``.

        Row ``m`` is computed with module ``m`` acting alone.
        """
        features = self._features(obs.flatten(0, 1)).unflatten(0, obs.shape[:2])
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


class RoutedCnnPolicy(RoutedActorCriticPolicy):
    """A :class:`RoutedActorCriticPolicy` for images, which modules, gate and value network read by ``NatureCNN``."""

    takes = (spaces.Box,)
    default_encoder = NatureCNN


class RoutedMultiInputPolicy(RoutedActorCriticPolicy):
    """A :class:`RoutedActorCriticPolicy` for Dict observations, which ``CombinedExtractor`` makes one vector."""

    takes = (spaces.Dict,)
    default_encoder = CombinedExtractor


CLASSES["MlpPolicy"] = RoutedActorCriticPolicy
CLASSES["CnnPolicy"] = RoutedCnnPolicy
CLASSES["MultiInputPolicy"] = RoutedMultiInputPolicy
