"""Save and load models as tensors and JSON: the format of ``RoutedPPO.save`` and ``RoutedPPO.load``.

Nothing is pickled: see :mod:`routed_rl.rl.encoding`.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import NoneType
from typing import Any, BinaryIO, Self, TypeVar

import gymnasium as gym
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, check_for_correct_spaces, get_system_info
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor, nn
from torch.optim import Optimizer

from routed_rl.rl.arguments import check_type
from routed_rl.rl.encoding import (
    POINTS,
    SCHEDULES,
    TableSchedule,
    decode,
    decode_space,
    encode,
    encode_function,
    encode_space,
    same_architecture,
)
from routed_rl.rl.env_state import FORCE_RESET, UnknownStateError, environment_state, restore_environment
from routed_rl.rl.environments import check_env
from routed_rl.rl.overseer import Overseer
from routed_rl.runs import Checkpoint, CheckpointError
from routed_rl.runs.files import StrPath
from routed_rl.runs.packed import read_anywhere, write_anywhere

Model = TypeVar("Model", bound="Saveable")

COUNTERS = ("num_timesteps", "_total_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")


def constructor_meta(model: Saveable) -> dict[str, Any]:
    """Return as JSON what the constructor got; raise a ValueError that names an argument that cannot be saved."""
    policy_kwargs = {k: v for k, v in model.policy_kwargs.items() if k not in ("modules", "learned_gate")}
    arguments = {name: getattr(model, name) for name in model.saved_arguments} | {"policy_kwargs": policy_kwargs}
    return {
        "algorithm": type(model).__name__,
        "policy": encode("policy", model.policy_class),
        "arguments": {name: _encode_argument(name, value) for name, value in arguments.items()},
        "overseer": model.overseer.to_dict(),
        "observation_space": encode_space(model.observation_space),
        "action_space": encode_space(model.action_space),
        "n_envs": model.n_envs,
    }


def _encode_argument(name: str, value: Any) -> Any:
    """Return a constructor argument as JSON. A function is code, so some of its values stand for it."""
    function = value.value_schedule if isinstance(value, FloatSchedule) else value
    known = (ConstantSchedule, *SCHEDULES.values())
    if callable(function) and not isinstance(function, type) and type(function) not in known:
        return encode_function(name, function)
    return encode(name, value)


def model_meta(model: Saveable) -> dict[str, Any]:
    """Return everything about a model that is not a tensor, as JSON."""
    return constructor_meta(model) | {
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
    overseer = _overseer(checkpoint, path)
    try:
        policy, saved = decode(meta["policy"]), {k: v for k, v in meta["arguments"].items() if k not in overrides}
        arguments = decode(saved)
        observation_space, action_space = decode_space(meta["observation_space"]), decode_space(meta["action_space"])
        n_envs, counters, steering = int(meta["n_envs"]), {k: meta["counters"][k] for k in COUNTERS}, meta["steering"]
        unknown = arguments.keys() - set(cls.saved_arguments)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not describe a {cls.__name__}: {error!r}") from error
    if tables := [name for name, value in arguments.items() if isinstance(value, TableSchedule)]:
        said = ", ".join(f"{arguments[name].__name__} as {name}" for name in tables)
        again = ", ".join(f"{name}=…" for name in tables)
        warnings.warn(
            f"{path} was saved with a function ({said}), and is linear between {POINTS + 1} of its values now: to "
            f"continue exactly, give it again, as in {cls.__name__}.load(…, {again})",
            stacklevel=3,
        )
    if unknown:
        raise CheckpointError(f"{path} has the argument {min(unknown)!r}, which {cls.__name__} does not have")
    model = cls(policy, None, overseer, device=device, _init_setup_model=False, **{**arguments, **overrides})
    model.observation_space, model.action_space, model.n_envs = observation_space, action_space, n_envs
    if env is not None:
        vec_env = model._wrap_env(env, model.verbose)
        check_for_correct_spaces(vec_env, observation_space, action_space)
        model.env, model.n_envs = vec_env, vec_env.num_envs
        model._vec_normalize_env = unwrap_vec_normalize(vec_env)
    model._setup_model()
    for name, count in counters.items():
        setattr(model, name, count)
    # Steps that wait for their label need the same buffer, and the same module that acted.
    steps, solo = meta["arguments"].get("n_steps"), meta["arguments"].get("solo", 0.0)
    same = (model.n_envs, model.n_steps, model.solo) == (n_envs, steps, solo)
    restore_tensors(model, checkpoint.tensors, path, rollout=same)
    model.policy.set_steering(steering)
    if env is not None and not force_reset:
        _continue_in_environment(model, checkpoint.tensors, path)
    return model


def _overseer(checkpoint: Checkpoint, path: StrPath) -> Overseer:
    try:
        return Overseer.from_dict(checkpoint.meta["overseer"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not describe a routed agent: overseer: {error!r}") from error


def model_tensors(model: Saveable) -> dict[str, Tensor]:
    """Return all tensors that continued training needs: weights, optimizer, waiting steps, replay, environment."""
    # torch.compile(policy) wraps the policy, and so puts a prefix before the names.
    policy: nn.Module = getattr(model.policy, "_orig_mod", model.policy)
    tensors = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    tensors |= _optimizer_tensors("optimizer", model.policy.optimizer)
    tensors |= {f"buffer.{name}": tensor for name, tensor in model.buffer.tensors().items()}
    tensors |= {f"replay.{name}": tensor for name, tensor in model.replay.tensors().items()}
    if model.outcome_model is not None:
        tensors |= {f"outcome_model.{name}": tensor for name, tensor in model.outcome_model.state_dict().items()}
        tensors |= _optimizer_tensors("outcome_optimizer", model.outcome_model.optimizer)
    if model.ep_info_buffer:
        rows = [(episode["r"], episode["l"]) for episode in model.ep_info_buffer]
        tensors["episodes.statistics"] = torch.tensor(rows, dtype=torch.float64)  # (N, 2) returns and lengths
    if model.ep_success_buffer:
        tensors["episodes.successes"] = torch.tensor(list(map(float, model.ep_success_buffer)), dtype=torch.float64)
    if model.env is not None and model._last_obs is not None:
        tensors["last_obs"] = model.policy.observations.pack(model._last_obs, "cpu")
        with suppress(UnknownStateError):  # load(force_reset=False) refuses such an environment
            tensors |= {f"env.{name}": torch.as_tensor(array) for name, array in environment_state(model.env).items()}
    return tensors


def parameters_in(model: Saveable, tensors: Mapping[str, Tensor], path: StrPath) -> dict[str, Any]:
    """Return the weights and the optimizer state of a checkpoint, as ``model.get_parameters()`` does.

    Raises:
        CheckpointError: if the optimizer state does not match the model's architecture.
    """
    optimizer = _optimizer_state("optimizer", model.policy.optimizer, tensors, path)
    return {"policy": _under(tensors, "policy."), "policy.optimizer": optimizer}


def _optimizer_tensors(prefix: str, optimizer: Optimizer) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"].items()
    return {f"{prefix}.{i}.{name}": torch.as_tensor(value) for i, state in states for name, value in state.items()}


def _optimizer_state(prefix: str, optimizer: Optimizer, tensors: Mapping[str, Tensor], path: StrPath) -> dict[str, Any]:
    """Return what ``optimizer.load_state_dict`` takes; raise a CheckpointError if it has another architecture."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _under(tensors, f"{prefix}.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in state.items():
        if number >= len(parameters) or any(t.shape not in ((), parameters[number].shape) for t in entries.values()):
            raise CheckpointError(f"{path} holds an optimizer of another architecture: its entry {number} does not fit")
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def restore_tensors(model: Saveable, tensors: Mapping[str, Tensor], path: StrPath, *, rollout: bool) -> None:
    """Restore weights, optimizer, replay, episode statistics; with ``rollout`` also steps that wait for their label.

    Raises:
        CheckpointError: if the tensors do not match the model's architecture.
    """
    with same_architecture(path):
        model.set_parameters(parameters_in(model, tensors, path))
    if model.outcome_model is not None:
        with same_architecture(path):
            model.outcome_model.load_state_dict(_under(tensors, "outcome_model."))
        optimizer = model.outcome_model.optimizer
        optimizer.load_state_dict(_optimizer_state("outcome_optimizer", optimizer, tensors, path))
    if "episodes.statistics" in tensors:
        rows = tensors["episodes.statistics"].tolist()
        model.ep_info_buffer = deque(({"r": r, "l": int(n)} for r, n in rows), model._stats_window_size)
        successes = tensors.get("episodes.successes", torch.zeros(0))
        model.ep_success_buffer = deque(successes.tolist(), model._stats_window_size)
    targets = {f"replay.{name}": tensor for name, tensor in model.replay.tensors().items()}
    if rollout:
        targets |= {f"buffer.{name}": tensor for name, tensor in model.buffer.tensors().items()}
    for name, target in targets.items():
        if name not in tensors or tensors[name].shape != target.shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CheckpointError(f"{path} holds {found} instead of {tuple(target.shape)} as {name!r}")
        target.copy_(tensors[name])


def _continue_in_environment(model: Saveable, tensors: Mapping[str, Tensor], path: StrPath) -> None:
    """Restore the state of the environment and its wrappers; a model that was never trained has none.

    Raises:
        ValueError: if the checkpoint or the environment has no such state, or they do not match.
    """
    if "last_obs" not in tensors:
        return
    assert model.env is not None
    if (saved := len(tensors["last_obs"])) != model.n_envs:
        raise ValueError(f"{path} was saved with {saved} environments, got {model.n_envs}: use {saved}, {FORCE_RESET}")
    restore_environment(model.env, {name: tensor.numpy() for name, tensor in _under(tensors, "env.").items()})
    model._last_obs = model.policy.observations.arrays(tensors["last_obs"])
    model._last_episode_starts = model.buffer.ended[-1].cpu().numpy()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Saveable(OnPolicyAlgorithm):
    """``save`` and ``load`` without pickle; they replace those of Stable-Baselines3.

    :class:`~routed_rl.rl.RoutedAlgorithm` inherits them and sets every attribute that they read.
    """

    def save(
        self, path: StrPath | BinaryIO, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """Write a checkpoint directory (safetensors and JSON) with everything that continued training needs.

        A function as an argument, such as ``learning_rate=lambda left: 1e-3 * left``, is saved as 1001 of its values.

        Args:
            path: the checkpoint's directory. A path that ends in ``.zip`` (as those of Stable-Baselines3's callbacks),
                ``.pkl``, ``.pth`` or ``.pt``, or an open file, gets a zip archive of the directory's files.
            exclude: constructor arguments that are not written; :meth:`load` gives them their defaults.
            include: names in ``exclude`` that are written all the same.

        Raises:
            ValueError: if ``exclude`` or ``include`` names anything else, or the file is not open for bytes.
            CheckpointError: if there is something else than a checkpoint at the path. It is not overwritten.
        """
        given = {"exclude": set(exclude or ()), "include": set(include or ())}
        for argument, names in given.items():
            if unknown := sorted(names - set(self.saved_arguments)):
                raise ValueError(
                    f"{argument} must name constructor arguments that are saved, got {unknown}: use some of "
                    f"{', '.join(self.saved_arguments)}"
                )
        meta = model_meta(self)
        for name in given["exclude"] - given["include"]:
            del meta["arguments"][name]
        write_anywhere(path, model_tensors(self), meta)

    def set_parameters(
        self,
        load_path_or_dict: StrPath | TensorDict,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Replace weights and optimizer state, in place.

        Args:
            load_path_or_dict: a checkpoint that :meth:`save` wrote, or what ``get_parameters()`` returned.
            exact_match: with False, parameters that are missing keep their value.
            device: not used: the tensors go to the model's device.

        Raises:
            CheckpointError: if the checkpoint is corrupt, has another architecture, or has other modules.
        """
        if isinstance(load_path_or_dict, dict):
            super().set_parameters(load_path_or_dict, exact_match)
            return
        path = os.fspath(load_path_or_dict)
        checkpoint = read_anywhere(path)
        modules = _overseer(checkpoint, path).modules
        if modules != self.overseer.modules:
            raise CheckpointError(
                f"{path} has the modules {list(modules)}, the model has {list(self.overseer.modules)}"
            )
        with same_architecture(path):
            super().set_parameters(parameters_in(self, checkpoint.tensors, path), exact_match)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Train in this environment from now on; see Stable-Baselines3. Raises ValueError if it is none."""
        check_env(env=env)
        super().set_env(env, force_reset)

    @classmethod
    def load(
        cls,
        path: StrPath | BinaryIO,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: Mapping[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Return the model that a checkpoint describes.

        Args:
            path: what :meth:`save` got. If there is nothing, also with or without ``.zip`` at its end.
            env: the environment for further training; None is enough for prediction.
            device: where the model's tensors are put.
            custom_objects: values that replace saved constructor arguments of the same name; other names are ignored,
                as in Stable-Baselines3.
            print_system_info: whether to print the versions of Python and of the libraries.
            force_reset: reset the environment before training. With False, the state of an environment that has
                ``get_state`` and ``set_state``, and of its wrappers, is restored. Training then continues as if it had
                never stopped. If the model was saved in the middle of a rollout, the steps of that rollout are lost.
            kwargs: constructor arguments that replace the saved ones, or that are not saved (``tensorboard_log``).
                ``replay_capacity`` cannot be replaced, because it sets the shape of the saved replay.

        Raises:
            CheckpointError: if the checkpoint is corrupt, is not of this class, or has another architecture.
            ValueError: for an argument of a wrong type, or if the environment's spaces are not those of the model. With
                ``force_reset=False`` also if the state of the environment or of a wrapper is unknown (see
                ``routed_rl.rl.env_state``), and for another number of environments or other wrappers than those that
                were saved.
        """
        if isinstance(path, (gym.Env, VecEnv)):
            got = " ".join(repr(path).split())
            raise ValueError(f"path is the first argument of load() and env the second, got {got} as path: swap them")
        if env is not None:
            check_env(env=env)
        check_type((Mapping, NoneType), "a dict or None", custom_objects=custom_objects)
        if print_system_info:
            get_system_info()
        checkpoint = read_anywhere(path)
        known = {name: value for name, value in (custom_objects or {}).items() if name in cls.saved_arguments}
        return build(cls, checkpoint, str(path), env, device, force_reset, known | kwargs)
