"""Save and load models as tensors and JSON: the format of ``RoutedPPO.save`` and ``RoutedPPO.load``.

Nothing is pickled. Classes and schedules are saved by their registered name, so loading can build only these.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import (
    ConstantSchedule,
    FloatSchedule,
    LinearSchedule,
    check_for_correct_spaces,
)
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from routed_rl.paths import expanded
from routed_rl.rl.networks import MlpEncoder, SymbolicImageEncoder
from routed_rl.rl.overseer import Overseer
from routed_rl.rl.policies import PaperPolicy, RoutedActorCriticPolicy
from routed_rl.runs import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from routed_rl.runs.files import StrPath

Model = TypeVar("Model", bound="Saveable")

SCHEDULES: dict[str, type[Any]] = {"linear": LinearSchedule}
"""Name → schedule class. Add your own here; its attributes must be the arguments of its constructor."""

CLASSES: dict[str, type[Any]] = {
    "MlpPolicy": RoutedActorCriticPolicy,
    "PaperPolicy": PaperPolicy,
    "FlattenExtractor": FlattenExtractor,
    "MlpEncoder": MlpEncoder,
    "NatureCNN": NatureCNN,
    "SymbolicImageEncoder": SymbolicImageEncoder,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "RMSprop": torch.optim.RMSprop,
    "SGD": torch.optim.SGD,
}
"""Name → class that may be the policy or a value in ``policy_kwargs``. Add your own to save models that use it."""


def encode(name: str, value: Any) -> Any:
    """Return ``value`` as JSON; raise a ValueError that quotes ``name`` if it contains something unregistered."""
    if isinstance(value, FloatSchedule):
        return encode(name, value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return float(value.val)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {key: encode(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(name, item) for item in value]
    for registered, cls in SCHEDULES.items():
        if type(value) is cls:
            return {"schedule": registered, **vars(value)}
    for registered, cls in CLASSES.items():
        if value is cls:
            return {"class": registered}
    raise ValueError(
        f"{name}={value!r} cannot be saved: use a number, a string, a schedule among {sorted(SCHEDULES)} "
        f"or a class among {sorted(CLASSES)}, or register yours in routed_rl.rl.saving"
    )


def decode(value: Any) -> Any:
    """Return the value that :func:`encode` saved; raise a CheckpointError for a name that is not registered."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    for kind, registry in (("schedule", SCHEDULES), ("class", CLASSES)):
        if kind in value:
            if value[kind] not in registry:
                raise CheckpointError(
                    f"the checkpoint names the {kind} {value[kind]!r}, which is not registered: use one of "
                    f"{sorted(registry)}, or register yours in routed_rl.rl.saving"
                )
            found = registry[value[kind]]
            return found(**{k: v for k, v in value.items() if k != kind}) if kind == "schedule" else found
    return {key: decode(item) for key, item in value.items()}


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a Box, Discrete, MultiDiscrete or MultiBinary space as JSON; raise a ValueError for any other."""
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "low": _bound(space.low),
            "high": _bound(space.high),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": int(space.n)}
    raise ValueError(f"space {space} cannot be saved: only Box, Discrete, MultiDiscrete and MultiBinary can")


def _bound(bound: np.ndarray) -> Any:
    # JSON has no infinity, so it becomes a string. A bound that is the same everywhere is written once.
    values = [v if math.isfinite(v) else str(v) for v in map(float, bound.flat)]
    return values[0] if len(set(values)) == 1 else values


def decode_space(data: Mapping[str, Any]) -> spaces.Space[Any]:
    """Return the space that :func:`encode_space` saved."""
    kind, options = data.get("type"), {key: value for key, value in data.items() if key != "type"}
    if kind == "Box":
        shape, dtype = tuple(options["shape"]), np.dtype(options["dtype"])
        low, high = (
            np.broadcast_to(
                np.array(options[side], dtype=np.float64),
                (int(np.prod(shape)),) if isinstance(options[side], list) else shape,
            )
            .reshape(shape)
            .astype(dtype)
            for side in ("low", "high")
        )
        return spaces.Box(low, high, shape, dtype.type)
    if kind in ("Discrete", "MultiDiscrete", "MultiBinary"):
        space: spaces.Space[Any] = getattr(spaces, kind)(**options)
        return space
    raise CheckpointError(f"the checkpoint names an unknown space {kind!r}")


COUNTERS = ("num_timesteps", "_total_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")


def model_meta(model: Saveable) -> dict[str, Any]:
    """Return everything about a model that is not a tensor, as JSON."""
    policy_kwargs = {k: v for k, v in model.policy_kwargs.items() if k not in ("modules", "learned_gate")}
    arguments = {name: getattr(model, name) for name in model.saved_arguments} | {"policy_kwargs": policy_kwargs}
    return {
        "algorithm": type(model).__name__,
        "policy": encode("policy", model.policy_class),
        "arguments": encode("argument", arguments),
        "overseer": model.overseer.to_dict(),
        "observation_space": encode_space(model.observation_space),
        "action_space": encode_space(model.action_space),
        "n_envs": model.n_envs,
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "steering": model.policy.steering,
    }


def build(
    cls: type[Model],
    checkpoint: Checkpoint,
    path: StrPath,
    env: GymEnv | None,
    device: torch.device | str,
    force_reset: bool,
    overrides: Mapping[str, Any],
) -> Model:
    """Return the model that a checkpoint describes; see :meth:`RoutedAlgorithm.load` for arguments and errors."""
    meta = checkpoint.meta
    if meta.get("algorithm") != cls.__name__:
        raise CheckpointError(f"{path} holds {meta.get('algorithm', 'no model')!r}, not a {cls.__name__}")
    try:
        policy, arguments = decode(meta["policy"]), decode(meta["arguments"])
        observation_space, action_space = decode_space(meta["observation_space"]), decode_space(meta["action_space"])
        overseer = Overseer.from_dict(meta["overseer"])
        n_envs, counters, steering = int(meta["n_envs"]), {k: meta["counters"][k] for k in COUNTERS}, meta["steering"]
        unknown = arguments.keys() - set(cls.saved_arguments)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not describe a {cls.__name__}: {error!r}") from error
    if unknown:
        raise CheckpointError(f"{path} has the argument {min(unknown)!r}, which {cls.__name__} does not have")
    model = cls(policy, None, overseer, device=device, _init_setup_model=False, **{**arguments, **overrides})
    model.observation_space, model.action_space, model.n_envs = observation_space, action_space, n_envs
    if env is not None:
        vec_env = model._wrap_env(env, model.verbose)
        check_for_correct_spaces(vec_env, observation_space, action_space)
        model.env, model.n_envs = vec_env, vec_env.num_envs
    model._setup_model()
    for name, count in counters.items():
        setattr(model, name, count)
    restore_tensors(
        model, checkpoint.tensors, path, rollout=(model.n_envs, model.n_steps) == (n_envs, arguments["n_steps"])
    )
    model.policy.set_steering(steering)
    if env is not None and not force_reset:
        restore_environment(model, checkpoint.tensors)
    return model


def model_tensors(model: Saveable) -> dict[str, Tensor]:
    """Return all tensors that continued training needs: weights, optimizer, waiting steps, replay, environment."""
    tensors = {f"policy.{name}": tensor for name, tensor in model.policy.state_dict().items()}
    for index, state in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors |= {f"buffer.{name}": tensor for name, tensor in model.buffer.tensors().items()}
    tensors |= {f"replay.{name}": tensor for name, tensor in model.replay.tensors().items()}
    if model._last_obs is not None:
        tensors["last_obs"] = torch.as_tensor(model._last_obs).cpu()
        tensors |= {f"env.{name}": torch.as_tensor(array) for name, array in environment_state(model.env).items()}
    return tensors


def restore_tensors(model: Saveable, tensors: Mapping[str, Tensor], path: StrPath, *, rollout: bool) -> None:
    """Restore weights, optimizer state and replay; with ``rollout`` also the steps that wait for their label.

    Raises:
        CheckpointError: if the tensors do not match the model's architecture.
    """
    try:
        model.policy.load_state_dict(_under(tensors, "policy."))
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise CheckpointError(f"{path} holds weights of another architecture: {detail}") from error
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _under(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    parameters = list(model.policy.parameters())
    for number, entries in state.items():
        if number >= len(parameters) or any(t.shape not in ((), parameters[number].shape) for t in entries.values()):
            raise CheckpointError(f"{path} holds an optimizer of another architecture: its entry {number} does not fit")
    groups = model.policy.optimizer.state_dict()["param_groups"]
    model.policy.optimizer.load_state_dict({"state": state, "param_groups": groups})
    targets = {f"replay.{name}": tensor for name, tensor in model.replay.tensors().items()}
    if rollout:
        targets |= {f"buffer.{name}": tensor for name, tensor in model.buffer.tensors().items()}
    for name, target in targets.items():
        if name not in tensors or tensors[name].shape != target.shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CheckpointError(f"{path} holds {found} instead of {tuple(target.shape)} as {name!r}")
        target.copy_(tensors[name])


def environment_state(env: VecEnv | None) -> dict[str, np.ndarray]:
    """Return the state of a vector environment, one row per environment; empty if it has no ``get_state``."""
    if env is not None and hasattr(env, "get_state"):
        state: dict[str, np.ndarray] = env.get_state()
        return state
    if env is None or not env.has_attr("get_state"):
        return {}
    states = env.env_method("get_state")
    return {name: np.stack([state[name] for state in states]) for name in states[0]}


def restore_environment(model: Saveable, tensors: Mapping[str, Tensor]) -> None:
    """Restore the environment's state, if the checkpoint has it and the environment has ``set_state``."""
    saved = {name: tensor.numpy() for name, tensor in _under(tensors, "env.").items()}
    env = model.env
    assert env is not None
    if not saved or len(tensors["last_obs"]) != model.n_envs:
        return
    if hasattr(env, "set_state"):
        env.set_state(saved)
    elif env.has_attr("set_state"):
        for row in range(env.num_envs):
            env.env_method("set_state", {name: array[row] for name, array in saved.items()}, indices=[row])
    else:
        return
    model._last_obs = tensors["last_obs"].numpy()
    model._last_episode_starts = model.buffer.ended[-1].cpu().numpy()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Saveable(OnPolicyAlgorithm):
    """``save`` and ``load`` without pickle; they replace those of Stable-Baselines3.

    :class:`~routed_rl.rl.RoutedAlgorithm` inherits them and sets every attribute that they read.
    """

    def save(self, path: StrPath, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """Write a checkpoint directory (safetensors and JSON) with everything that continued training needs.

        The suffix ``.zip``, which Stable-Baselines3's callbacks append, is dropped. ``exclude`` and ``include`` exist
        only because those callbacks pass them; they must be empty.

        Raises:
            ValueError: if an argument is a callable or class without a registered name (see
                :mod:`routed_rl.rl.saving`), or if ``exclude`` or ``include`` is not empty.
        """
        if exclude or include:
            raise ValueError(
                "a checkpoint always holds the whole model: leave out exclude and include, "
                f"got exclude={exclude!r}, include={include!r}"
            )
        _directory(path).parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(_directory(path), model_tensors(self), model_meta(self))

    @classmethod
    def load(
        cls,
        path: StrPath,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        *,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Return the model that a checkpoint describes.

        Args:
            path: the checkpoint's directory.
            env: the environment for further training; None is enough for prediction.
            device: where the model's tensors are put.
            force_reset: reset the environment before training. With False, the state of an environment that has
                ``set_state`` is restored, and training continues as if it had never stopped. If the model was saved in
                the middle of a rollout, the steps of that rollout are lost.
            kwargs: constructor arguments that replace the saved ones, e.g. ``tensorboard_log``. ``replay_capacity``
                cannot be replaced, because it sets the shape of the saved replay.

        Raises:
            CheckpointError: if the checkpoint is corrupt, is not of this class, or has another architecture.
            ValueError: if the environment's spaces or outcomes are not those of the model.
        """
        checkpoint = read_checkpoint(_directory(path))
        return build(cls, checkpoint, os.fspath(path), env, device, force_reset, kwargs)


def _directory(path: StrPath) -> Path:
    path = expanded(path)
    return path.with_suffix("") if path.suffix == ".zip" else path
