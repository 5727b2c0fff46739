"""``model.rollout_buffer``, as callbacks of Stable-Baselines3 read it."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from .test_surface import ACTIONS, OBSERVATIONS, Any, learner
from .worlds import small_model

NAMES = ("observations", "actions", "rewards", "values", "log_probs", "episode_starts")


class Reading(BaseCallback):
    def __init__(self):
        super().__init__()
        self.read, self.stepped = [], []

    def _on_step(self):
        self.stepped.append({name: np.copy(self.locals[name]) for name in ("dones", "rewards")})
        return True

    def _on_rollout_end(self):
        self.read.append({name: copy.deepcopy(getattr(self.model.rollout_buffer, name)) for name in NAMES})


@pytest.mark.parametrize("actions", sorted(ACTIONS.keys() - {"Discrete from 3", "MultiDiscrete"}))  # PPO starts at 0
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_shapes_and_kinds_are_those_of_stable_baselines3(name, actions):
    space, policy, networks, _ = OBSERVATIONS[name]

    def make():
        return DummyVecEnv([lambda: Any(space, ACTIONS[actions])] * 2)

    ours = learner(policy, make(), policy_kwargs=networks)
    theirs = PPO(policy, make(), n_steps=4, batch_size=8, n_epochs=1, policy_kwargs=networks, device="cpu")
    for read in (ours, theirs):
        read.learn(8, callback := Reading())
        read.found = callback.read[0]
    assert (ours.rollout_buffer.buffer_size, ours.rollout_buffer.n_envs) == (4, 2)
    for part in NAMES:
        own, other = (read.found[part] for read in (ours, theirs))
        if isinstance(own, dict):
            assert own.keys() == other.keys() and isinstance(space, spaces.Dict)
        pairs = [(own[key], other[key]) for key in own] if isinstance(own, dict) else [(own, other)]
        assert all(a.shape == b.shape for a, b in pairs), part


def test_it_has_what_was_played_and_changing_it_changes_nothing():
    model = small_model()
    model.learn(2 * 128, callback := Reading())
    first, second = callback.read
    dones = np.stack([step["dones"] for step in callback.stepped])
    assert np.array_equal(second["episode_starts"], dones[7:15])
    assert first["episode_starts"][0].all() and np.array_equal(first["episode_starts"][1:], dones[:7])
    paid = second["rewards"] != 0
    assert paid.any() and dones[8:16][paid].all(), "only the end of an episode pays"
    obs = torch.from_numpy(second["observations"]).flatten(0, 1)
    again = model.rollout_buffer
    assert np.array_equal(again.values, second["values"]) and np.isfinite(again.values).all()
    with torch.no_grad():
        assert model.policy.predict_values(obs).shape == (128, 1)
    for name in NAMES:
        getattr(again, name)[:] = 7
        assert np.array_equal(getattr(again, name), second[name])
