"""The tensor environment draws the same episodes as the numpy one. CPU tensors run the same code as on a GPU."""

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from routed_rl.envs import DiamondGhostTensorVecEnv, DiamondGhostVecEnv
from tests.envs.worlds import assert_same

OPTIONS = ({}, {"size": 7, "spurious_oversight": 0.2, "max_steps": 9}, {"oversight": 1.0})


def pair(options, n=33, seed=3):
    both = DiamondGhostVecEnv(n, seed=seed, **options), DiamondGhostTensorVecEnv(n, "cpu", seed=seed, **options)
    plain, tensors = (env.reset() for env in both)
    assert_same(plain, tensors.numpy())
    return both


@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_world_as_numpy(options):
    plain, tensors = pair(options)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(120):
        actions = rng.integers(4, size=33)
        obs, rewards, dones, infos = plain.step(actions)
        t_obs, t_rewards, t_dones, t_infos = tensors.step(torch.from_numpy(actions))
        for a, b in ((obs, t_obs), (rewards, t_rewards), (dones, t_dones)):
            assert_same(a, b.numpy())
        assert repr(infos[:]) == repr(t_infos[:]) and len(t_infos) == 33
        for name in ("outcome", "overseen", "truncated", "length", "final_obs"):
            assert_same(getattr(infos.ends, name), getattr(t_infos.ends, name).numpy()[dones])
        assert not t_infos.ends.overseen[~t_dones].any() and (t_infos.ends.outcome[~t_dones] == -1).all()
        ended += dones.sum()
    assert ended > 60
    assert_same(plain.get_state(), tensors.get_state())


def test_reset_and_state_go_on_exactly():
    plain, tensors = pair({})
    for env, actions in ((plain, np.ones(33, dtype=np.int64)), (tensors, torch.ones(33, dtype=torch.int64))):
        env.step(actions)
    assert_same(plain.reset(), tensors.reset().numpy())  # each environment's next episode
    other = DiamondGhostTensorVecEnv(33, "cpu")
    other.set_state(tensors.get_state())
    for _ in range(40):
        actions = torch.randint(4, (33,))
        assert torch.equal(tensors.step(actions)[0], other.step(actions)[0])


def test_rendering_shows_the_present():
    plain, tensors = (
        face(2, **device, seed=0, render_mode="ansi")
        for face, device in ((DiamondGhostVecEnv, {}), (DiamondGhostTensorVecEnv, {"device": "cpu"}))
    )
    plain.reset(), tensors.reset()
    plain.step(np.array([0, 1])), tensors.step(torch.tensor([0, 1]))
    assert plain.env_method("render") == tensors.env_method("render")
    assert_same(np.array(plain.get_images()), np.array(tensors.get_images()))


@pytest.mark.parametrize("actions", [np.zeros(2, dtype=np.int64), torch.zeros(2), torch.zeros(3, dtype=torch.int64)])
def test_bad_actions_are_refused(actions):
    env = DiamondGhostTensorVecEnv(2, "cpu")
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(torch.zeros(2, dtype=torch.int64))
    env.reset()
    with pytest.raises(ValueError, match="2 int64"):
        env.step(actions)
