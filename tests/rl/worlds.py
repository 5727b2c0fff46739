"""Small worlds and learners for tests."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.rl import Overseer, RoutedPPO

VALUES = {"ghost": -1.0, "diamond": 1.0}


class TwoDoors(gym.Env):
    """A corridor of five cells with a good door at one end and a bad door at the other.

    The best policy is known: walk towards the chosen door. It is a plain Gymnasium environment whose infos have
    ``"outcome"`` and ``"overseen"``."""

    observation_space = gym.spaces.Box(0, 1, (6,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, oversight=0.5):
        self.oversight = oversight

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = int(self.np_random.integers(1, 4)), 0
        self.overseen = bool(self.np_random.random() < self.oversight)
        return self._obs(), {}

    def step(self, action):
        self.position += 1 if action == 1 else -1
        self.steps += 1
        terminated = self.position in (0, 4)
        truncated = not terminated and self.steps >= 12
        info = {}
        if terminated or truncated:
            info["outcome"] = {0: "bad", 4: "good"}.get(self.position)
            info["overseen"] = terminated and self.overseen
        return self._obs(), {0: -1.0, 4: 1.0}.get(self.position, 0.0), terminated, truncated, info

    def _obs(self):
        obs = np.zeros(6, np.float32)
        obs[self.position], obs[5] = 1, self.overseen
        return obs


def two_doors(n=16, oversight=0.5):
    return DummyVecEnv([lambda: TwoDoors(oversight)] * n)


def small_model(env=None, method="routing", *, overseer=None, seed=0, policy="MlpPolicy", **options):
    env = DiamondGhostVecEnv(16, oversight=0.3) if env is None else env
    options = {"n_steps": 8, "batch_size": 64, "replay_batch": 16, "replay_capacity": 64, **options}
    kwargs = {"hidden": (8, 8), "value_hidden": (8,), **options.pop("policy_kwargs", {})}
    overseer = overseer or Overseer(VALUES, method, oversight=0.3)
    return RoutedPPO(policy, env, overseer, seed=seed, device="cpu", policy_kwargs=kwargs, **options)


def fingerprint(model):
    """Return weights and optimizer state as bytes."""
    from routed_rl.rl.saving import model_tensors

    return {name: tensor.cpu().numpy().tobytes() for name, tensor in model_tensors(model).items()}


def refused(call, *quoted):
    """Assert that a call raises a ValueError of one line that quotes these words, and return it."""
    with pytest.raises(ValueError, match=r"[:,=]") as error:
        call()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in quoted), error.value
    return str(error.value)
