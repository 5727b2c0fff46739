"""What users pass as environments: a sentence for what is none, or does not keep to Gymnasium's API."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from routed_rl.rl.env_state import frozen_statistics, layers

WANTED = "a Gymnasium environment or a VecEnv"


def is_environment(value: object) -> bool:
    """Return whether this is one environment or a ``VecEnv``."""
    return isinstance(value, (gym.Env, VecEnv))


def check_env(wanted: str = WANTED, /, **given: object) -> None:
    """Raise a ValueError that names the argument and says what is ``wanted``, unless every value is an environment."""
    for name, env in given.items():
        if not is_environment(env):
            made = f": make one, as in {env.__name__}(…)" if callable(env) and hasattr(env, "__name__") else ""
            if isinstance(env, (list, gym.vector.VectorEnv)):
                made = ": for several environments, give a VecEnv, as in DummyVecEnv([make_env] * 16)"
            raise ValueError(f"{name} must be {wanted}, got {' '.join(repr(env).split())}{made}")
        for attribute in ("observation_space", "action_space"):
            if not isinstance(space := getattr(env, attribute, None), spaces.Space):
                kind = type(env).__name__
                raise ValueError(f"{name} must have an {attribute}, a space of Gymnasium, got {space!r} in {kind}")


def vectorised(env: gym.Env[Any, Any] | VecEnv, name: str = "env") -> VecEnv:
    """Return a ``VecEnv``, ``env`` itself or one with this single environment; raise a ValueError for anything else."""
    check_env(**{name: env})
    return env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])


def tensor_device(env: VecEnv | None, learner: torch.device) -> torch.device | None:
    """Return the device of a tensor environment, which must be the learner's; None for a numpy environment.

    Raises:
        ValueError: if a tensor environment has a wrapper, is on another device, or does not number its actions from 0.
    """
    if not getattr(env, "speaks_tensors", False):
        return None
    assert env is not None
    if isinstance(env, VecEnvWrapper):
        raise ValueError(f"an environment of tensors cannot have a wrapper, got {type(env).__name__}: leave it out")
    if np.any(getattr(env.action_space, "start", 0)):
        raise ValueError(f"an environment of tensors must number its actions from 0, got {env.action_space}")
    device: torch.device = env.device  # type: ignore[attr-defined]
    if device.type != learner.type:
        raise ValueError(
            f"environment and learner must be on one device: the environment's tensors are on {device}, "
            f"the learner is on {learner}"
        )
    return device


def check_finite(observations: Any) -> None:
    """Raise a ValueError if observations, an array or tensor or a mapping of such, hold NaN or infinity."""
    parts = observations.values() if isinstance(observations, Mapping) else [observations]
    if not all(bool(np.isfinite(np.asarray(part)).all()) for part in parts):
        raise ValueError("the environment's observations hold NaN or infinity: see what its reset and step return")


@contextmanager
def explained(env: VecEnv) -> Iterator[None]:
    """Within the block, an error that comes out of ``env`` becomes a sentence if ``env`` broke Gymnasium's API.

    Raises:
        ValueError: as :func:`check_api`.
    """
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        if any(frame.f_locals.get("self") is env for frame, _ in walk_tb(error.__traceback__)):
            check_api(env, error)
        raise


def check_infos(env: VecEnv) -> None:
    """Raise a ValueError if the last reset returned no info. A vector of two numbers can pass for the pair wanted."""
    if not all(isinstance(info, dict) for info in env.reset_infos):
        check_api(env)


def check_api(env: VecEnv, cause: Exception | None = None) -> None:
    """Reset each environment in this process, innermost first, and take a random step in it.

    Raises:
        ValueError: if one returns something else than Gymnasium's API says, because of ``cause``. An environment whose
            code itself raises an error passes.
    """
    with frozen_statistics(env):
        for layer in reversed(list(layers(env))):
            if isinstance(layer, gym.Env) and (fault := _fault(layer)):
                raise ValueError(fault) from cause


def _fault(env: gym.Env[Any, Any]) -> str | None:
    """Return what is wrong with what an environment returns; None: nothing, or its own code raises an error."""
    kind = type(env).__name__
    try:
        inspect.signature(env.reset).bind(seed=0)
    except TypeError:
        return f"{kind}.reset must take the argument seed, as in reset(self, *, seed=None, options=None)"
    try:
        start = env.reset()
        if not _fits(start, 2):
            return f"{kind}.reset must return (observation, info), got {_line(start)}"
        step = env.step(env.action_space.sample())
    except Exception:
        return None
    if _fits(step, 5):
        shape = env.observation_space.shape
        for method, (observation, *_) in {"reset": start, "step": step}.items():
            if shape is not None and np.shape(observation) != shape:
                got = f"an observation of shape {np.shape(observation)}"
                return f"{kind}.{method} must return an observation of its observation_space, {shape}, got {got}"
        return None
    old = ": done has become terminated and truncated" if isinstance(step, tuple) and len(step) == 4 else ""
    return f"{kind}.step must return (observation, reward, terminated, truncated, info), got {_line(step)}{old}"


def _fits(returned: Any, length: int) -> bool:
    """Whether this is a tuple of so many entries: an observation first, an info last."""
    is_tuple = isinstance(returned, tuple) and len(returned) == length
    return is_tuple and returned[0] is not None and isinstance(returned[-1], dict)


def _line(value: Any) -> str:
    return " ".join(reprlib.repr(value).split())
