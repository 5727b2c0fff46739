"""The state of a vector environment and of all its wrappers, as arrays.

``save`` keeps this state, and ``load(force_reset=False)`` restores it. A layer whose state is not known is refused,
because training would continue from another state than the saved one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from gymnasium.wrappers import utils
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

STATE: dict[type, tuple[str, ...]] = {
    RunningMeanStd: ("mean", "var", "count"),
    StackedObservations: ("stacked_obs", "sub_stacked_observations"),
    VecFrameStack: ("stacked_obs",),
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count"),
    VecNormalize: ("obs_rms", "ret_rms", "returns"),
    Monitor: ("rewards", "needs_reset", "total_steps"),
    utils.RunningMeanStd: ("mean", "var", "count"),
    wrappers.Autoreset: ("autoreset",),
    wrappers.DelayObservation: ("observation_queue",),
    wrappers.FrameStackObservation: ("obs_queue",),
    wrappers.NormalizeObservation: ("obs_rms",),
    wrappers.NormalizeReward: ("return_rms", "discounted_reward"),
    wrappers.OrderEnforcing: ("_has_reset",),
    wrappers.PassiveEnvChecker: ("checked_reset", "checked_step", "checked_data_reuse", "_previous_data"),
    wrappers.RecordEpisodeStatistics: (
        "episode_returns",
        "episode_lengths",
        "episode_count",
        "return_queue",
        "length_queue",
    ),
    wrappers.TimeAwareObservation: ("timesteps",),
    wrappers.TimeLimit: ("_elapsed_steps",),
    **dict.fromkeys(
        (
            VecCheckNan,
            VecExtractDictObs,
            VecTransposeImage,
            wrappers.ClipReward,
            wrappers.DiscretizeAction,
            wrappers.DtypeObservation,
            wrappers.FilterObservation,
            wrappers.FlattenObservation,
            wrappers.GrayscaleObservation,
            wrappers.MaxAndSkipObservation,
            wrappers.RepeatAction,
            wrappers.RescaleAction,
            wrappers.RescaleObservation,
            wrappers.ReshapeObservation,
        ),
        (),
    ),
}
"""Class of a wrapper (or of a value in it) → the attributes on which later steps depend.

Add your own wrappers here, or name the attributes in the class itself: ``state_attributes = ("count",)``.
Settings, clocks, and logs of past episodes are left out. An attribute holds a number, an array, a list or deque of
these, a dict of these, or an object of a class whose attributes are named.
"""

_COMMON = {
    *("env", "_action_space", "_observation_space", "_metadata", "_cached_spec", "_saved_kwargs"),
    *("venv", "num_envs", "observation_space", "action_space", "reset_infos", "_seeds", "_options"),
    *("render_mode", "metadata", "class_attributes"),
}
"""Attributes that every wrapper of Gymnasium or of Stable-Baselines3 has, and that hold no state."""

_FROZEN: dict[type, tuple[str, ...]] = {
    VecNormalize: ("training", "norm_reward"),
    wrappers.NormalizeObservation: ("update_running_mean",),
    wrappers.NormalizeReward: ("update_running_mean",),
}
"""Class of a wrapper that normalises → its switches. With all of them off, its statistics do not change."""

FORCE_RESET = "or load with force_reset=True"
_SAME = f"use the same wrappers, {FORCE_RESET}"


class UnknownStateError(ValueError):
    """The state of an environment, or of one of its wrappers, cannot be read."""


def has_state(env: object) -> bool:
    """Whether the class of ``env`` itself has ``get_state`` and ``set_state``. They must cover all that it wraps."""
    return all(callable(getattr(type(env), name, None)) for name in ("get_state", "set_state"))


def _state_attributes(kind: type) -> tuple[str, ...] | None:
    """Return the attributes with state of this very class, as a subclass may have more; None if they are unknown."""
    attributes: tuple[str, ...] | None = STATE.get(kind, vars(kind).get("state_attributes"))
    return attributes


def layers(env: Any) -> Iterator[Any]:
    """Yield ``env``, then all that it wraps in this process, also the single environments of a ``DummyVecEnv``."""
    yield env
    for inner in env.envs if isinstance(env, DummyVecEnv) else filter(None, [_inner(env)]):
        yield from layers(inner)


def _inner(env: Any) -> Any:
    if isinstance(env, VecEnvWrapper):
        return env.venv
    return env.env if isinstance(env, gym.Wrapper) else None


@contextmanager
def frozen_statistics(env: VecEnv) -> Iterator[None]:
    """Within the block, wrappers that normalise keep their statistics, and ``VecNormalize`` leaves rewards as they are.

    Wrappers inside other processes (``SubprocVecEnv``) are not reached.
    """
    settings = [(layer, name) for layer in layers(env) for name in _FROZEN.get(type(layer), ())]
    before = [getattr(layer, name) for layer, name in settings]
    try:
        for layer, name in settings:
            setattr(layer, name, False)
        yield
    finally:
        for (layer, name), value in zip(settings, before, strict=True):
            setattr(layer, name, value)


def environment_state(env: VecEnv) -> dict[str, np.ndarray]:
    """Return the state of ``env`` and its wrappers. A name is ``"WRAPPER/WRAPPER:attribute"``, outermost first.

    In place of a wrapper, a number may stand: the row of a single environment.

    Raises:
        UnknownStateError: if the innermost environment has no ``get_state`` and ``set_state``, or a wrapper is unknown.
    """
    parts = _parts(env, ())
    state = ((f"{path}:{name}".lstrip(":"), value) for path, part in parts for name, value in part.get_state().items())
    return {name: _numbers(name, value) for name, value in state}


def _numbers(name: str, value: Any) -> np.ndarray:
    with suppress(ValueError):  # numpy's, for lists of unequal lengths
        if (array := np.array(value)).dtype.kind in "biuf":
            return array
    raise UnknownStateError(
        f"the state of an environment must be numbers, got {' '.join(repr(value).split())} as {name!r}"
    )


def restore_environment(env: VecEnv, state: Mapping[str, np.ndarray]) -> None:
    """Restore a state that :func:`environment_state` returned.

    Raises:
        UnknownStateError: as :func:`environment_state`.
        ValueError: if the state is of an environment with other wrappers.
    """
    parts, saved = dict(_parts(env, ())), dict[str, dict[str, np.ndarray]]()
    for name, array in state.items():
        path, _, attribute = name.rpartition(":")
        saved.setdefault(path, {})[attribute] = array
    if not saved:
        raise ValueError(f"the state of the environment was not saved: save again with a known one, {FORCE_RESET}")
    if parts.keys() != saved.keys():
        inside, outside = (max(paths, key=len).strip("/") or "no wrapper" for paths in (saved, parts))
        raise ValueError(f"the environment was saved in {inside}, got {outside}: {_SAME}")
    for path, part in parts.items():
        part.set_state(saved[path])


def _parts(env: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield everything that holds state, each with its path: objects that have ``get_state`` and ``set_state``."""
    name = type(env).__name__
    if has_state(env):
        yield "".join(f"{outer}/" for outer in path), env
    elif isinstance(env, DummyVecEnv):
        for row, single in enumerate(env.envs):
            yield from _parts(single, (*path, str(row)))
    elif (inner := _inner(env)) is not None:
        attributes = _state_attributes(type(env))
        if attributes is None and (unknown := sorted(vars(env).keys() - _COMMON)):
            raise UnknownStateError(
                f"the state of the wrapper {name} is unknown, it has the attributes {', '.join(unknown)}: name "
                f"those with state in its class as state_attributes, or in routed_rl.rl.env_state.STATE, {FORCE_RESET}"
            )
        path = (*path, name)
        if attributes:
            yield "/".join(path), _Attributes(env)
        yield from _parts(inner, path)
    elif isinstance(env, VecEnv) and env.has_attr("get_state") and env.has_attr("set_state"):
        if any(env.env_is_wrapped(gym.Wrapper)):
            raise UnknownStateError(
                f"the wrappers inside {name} are in other processes, where their state cannot be read: use "
                f"DummyVecEnv, {FORCE_RESET}"
            )
        for row in range(env.num_envs):
            yield "".join(f"{outer}/" for outer in (*path, row)), _Row(env, row)
    else:
        raise UnknownStateError(f"the environment {name} has no get_state and set_state: add them, {FORCE_RESET}")


@dataclass
class _Row:
    """One environment of a vector environment whose single environments cannot be reached directly."""

    env: VecEnv
    row: int

    def get_state(self) -> Any:
        return self.env.env_method("get_state", indices=[self.row])[0]

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.env.env_method("set_state", state, indices=[self.row])


@dataclass
class _Attributes:
    """The attributes with state of an object (see :data:`STATE`), as ``get_state`` and ``set_state``."""

    holder: Any

    def get_state(self) -> dict[str, Any]:
        return {name: values[key] for name, values, key in self._leaves() if values[key] is not None}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        leaves = self._leaves()
        if lacking := sorted(state.keys() - {name for name, _, _ in leaves}):
            raise ValueError(f"{type(self.holder).__name__} was saved with {lacking}, which it now lacks: {_SAME}")
        for name, values, key in leaves:
            values[key] = _like(values[key], state[name]) if name in state else None

    def _leaves(self) -> list[tuple[str, dict[Any, Any], Any]]:
        """Return, for each number or array, its dotted name, the dict that holds it, and its key there."""
        leaves, pending = [], [("", self.holder)]
        while pending:
            prefix, holder = pending.pop()
            values = holder if isinstance(holder, dict) else vars(holder)
            for key in holder if isinstance(holder, dict) else _state_attributes(type(holder)) or ():
                if isinstance(values.get(key), dict) or _state_attributes(type(values.get(key))) is not None:
                    pending.append((f"{prefix}{key}.", values[key]))
                elif key in values:
                    leaves.append((f"{prefix}{key}", values, key))
        return leaves


def _like(current: Any, array: np.ndarray) -> Any:
    """Return a saved array as a value of the kind of ``current``: list, deque, number or array."""
    if isinstance(current, list):
        return array.tolist()
    if isinstance(current, deque):
        return deque(array, maxlen=current.maxlen)
    return array.item() if array.ndim == 0 else array
