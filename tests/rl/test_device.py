"""A learner with a tensor environment gets the same bits as with numpy."""

import pytest
import torch

from routed_rl.envs import DiamondGhostTensorVecEnv, DiamondGhostVecEnv
from routed_rl.rl import Overseer, RoutedPPO, RoutedREINFORCE

OVERSEER = {"ghost": -1, "diamond": 1}


def learner(env, kind, **options):
    policy = "PaperPolicy" if kind is RoutedREINFORCE else "MlpPolicy"
    defaults = {"n_steps": 8, "seed": 0, "device": "cpu", "replay_steps": 2, "replay_batch": 16}
    return kind(policy, env, Overseer(OVERSEER), **defaults | options)


def same(a, b):
    pairs = zip(a.policy.state_dict().values(), b.policy.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RoutedPPO, {"batch_size": 128}),
        (RoutedPPO, {"batch_size": 100, "unfinished": "hold"}),
        (RoutedREINFORCE, {}),
    ],
)
def test_tensors_teach_what_numpy_teaches(kind, options, tmp_path):
    world = {"oversight": 0.3, "max_steps": 5}  # some episodes are truncated, others cut by the rollout's end
    plain = learner(DiamondGhostVecEnv(64, **world), kind, **options)
    tensors = learner(DiamondGhostTensorVecEnv(64, "cpu", **world), kind, **options)
    for model in (plain, tensors):
        model.learn(3 * 512)
    assert same(plain, tensors)
    tensors.save(tmp_path / "model")
    env = DiamondGhostTensorVecEnv(64, "cpu", **world)
    again = kind.load(tmp_path / "model", env=env, device="cpu", force_reset=False)
    for model in (plain, again):
        model.learn(2 * 512, reset_num_timesteps=False)
    assert same(plain, again), "a loaded learner continues where the saved one stopped"


def test_tensors_that_do_not_fit_are_refused():
    env = DiamondGhostTensorVecEnv(4, "cpu")
    other = RoutedPPO("MlpPolicy", env, Overseer({"diamond": 1, "ghost": -1}), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match=r"as the overseer does, \['diamond', 'ghost'\]"):
        other.learn(32)
    elsewhere = learner(DiamondGhostTensorVecEnv(4, "cpu"), RoutedPPO, batch_size=8)
    elsewhere.env.device = torch.device("meta")
    with pytest.raises(ValueError, match=r"on meta, the learner is on cpu"):
        elsewhere.learn(32)
