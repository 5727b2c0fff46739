"""Stable-Baselines3's algorithms work with its own vector environments and with DiamondGhostVecEnv."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecCheckNan, VecFrameStack, VecMonitor, VecNormalize

from routed_rl.envs import DiamondGhostVecEnv, DiamondGhostVectorEnv
from tests.envs.worlds import OPTIONS, assert_same, random_actions

ID = "RoutedRL/DiamondGhost-v0"
FAST = {"policy_kwargs": {"net_arch": [16]}, "device": "cpu", "seed": 0}
LEARNERS = {
    "ppo": (PPO, {"n_steps": 32, "batch_size": 64, "n_epochs": 2}),
    "a2c": (A2C, {"n_steps": 16}),
    "dqn": (DQN, {"learning_starts": 50, "buffer_size": 500, "batch_size": 16}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_check_env_has_no_complaint(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(ID, render_mode="rgb_array", **OPTIONS[name]).unwrapped, skip_render_check=False)


@pytest.mark.parametrize("face", ["scalar", "batch"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_stock_learners_run(learner, face):
    algorithm, options = LEARNERS[learner]
    env = make_vec_env(ID, n_envs=4) if face == "scalar" else VecMonitor(DiamondGhostVecEnv(4))
    model = algorithm("MlpPolicy", env, **options, **FAST)
    before = [p.detach().clone() for p in model.policy.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(400)
    after = list(model.policy.parameters())
    assert any((a != b).any() for a, b in zip(after, before, strict=True))
    assert all(p.isfinite().all() for p in after)
    assert {info["l"] for info in model.ep_info_buffer} <= set(range(1, 33))
    assert {info["r"] for info in model.ep_info_buffer} <= {-1.0, 0.0, 1.0}


SETTINGS = {
    "ppo": {},
    "a2c": {"n_steps": 8},
    "dqn": {"gradient_steps": 4, "exploration_final_eps": 0.1, "target_update_interval": 100, "gamma": 0.9},
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_stock_learners_learn(learner):
    """A corridor of three cells with one exit: the best policy is known, walk straight to the exit."""
    options = {"size": (1, 3), "terminals": {"exit": 1.0}, "max_steps": 8}
    algorithm, settings = LEARNERS[learner]
    settings = {**settings, "learning_rate": 1e-2, **SETTINGS[learner]}
    model = algorithm("MlpPolicy", DiamondGhostVecEnv(16, **options), **settings, **FAST)
    model.learn(16 * 32 * 6)
    test = VecMonitor(DiamondGhostVecEnv(16, seed=99, **options))
    returns, lengths = evaluate_policy(model, test, 64, return_episode_rewards=True)
    assert set(returns) == {1.0}
    assert max(lengths) == 2


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_are_those_of_the_vector_face(name):
    ours, other = DiamondGhostVecEnv(6, seed=5, **OPTIONS[name]), DiamondGhostVectorEnv(6, **OPTIONS[name])
    assert_same(ours.reset(), other.reset(seed=5)[0])
    assert (ours.world.names, ours.outcome_names) == (other.world.names, other.world.names)
    for actions in random_actions(60, 6):
        obs, rewards, dones, infos = ours.step(actions)
        other_obs, other_rewards, terminations, truncations, other_infos = other.step(actions)
        assert_same((obs, dones), (other_obs, terminations | truncations))
        assert rewards.dtype == np.float32
        np.testing.assert_array_equal(rewards, other_rewards)
        assert infos.ends.rows.tolist() == np.flatnonzero(dones).tolist()
        for row, info in enumerate(infos):
            if not dones[row]:
                assert info == {}
                continue
            final = other_infos["final_info"]
            assert_same(info.pop("terminal_observation"), other_infos["final_obs"][row])
            assert info == {
                "outcome": final["outcome"][row],
                "overseen": final["overseen"][row],
                "TimeLimit.truncated": truncations[row],
            }


def until_ends(env, n_envs, at_least=2):
    """Step at random until one step ends at least ``at_least`` episodes; return this step."""
    for actions in random_actions(200, n_envs):
        *_, dones, infos = env.step(actions)
        if dones.sum() >= at_least:
            return dones, infos
    raise AssertionError("no such step")


def test_infos_are_a_sequence():
    env = DiamondGhostVecEnv(20, seed=0)
    env.reset()
    dones, infos = until_ends(env, 20)
    row = int(np.flatnonzero(dones)[0])
    assert len(infos) == 20
    assert len(list(infos)) == 20
    assert infos[row] is infos[row - 20]
    assert infos[row : row + 2] == [infos[row], infos[row + 1]]
    assert infos[::-1][-1 - row] is infos[row]
    assert infos[np.int64(row)]["outcome"] in (*env.outcome_names, None)
    for index in (20, -21):
        with pytest.raises(IndexError):
            infos[index]
    assert repr(infos) == repr(list(infos))


def test_ends_repeat_what_wrappers_wrote_into_the_dicts():
    env = DiamondGhostVecEnv(20, seed=0)
    env.reset()
    dones, infos = until_ends(env, 20)
    raw, row = infos.ends, int(np.flatnonzero(dones)[1])
    assert infos[row]["outcome"] is None or infos[row]["outcome"] in env.outcome_names
    assert_same(tuple(infos.ends), tuple(raw))
    infos[row].update(terminal_observation=np.full(100, 0.5, np.float32), outcome=None, overseen=True)
    assert (infos.ends.final_obs[1] == 0.5).all()
    assert (infos.ends.outcome[1], infos.ends.overseen[1]) == (-1, True)
    assert_same(infos.ends.final_obs[0], raw.final_obs[0])


def test_wrappers():
    n = 8
    env = VecCheckNan(VecNormalize(VecFrameStack(DiamondGhostVecEnv(n, seed=0), 3)), raise_exception=True)
    assert env.reset().shape == (n, 300)
    dones, infos = until_ends(env, n)
    for position, row in enumerate(np.flatnonzero(dones)):
        final = infos[int(row)]["terminal_observation"]
        assert final.shape == (300,)
        assert_same(infos.ends.final_obs[position], final)
        assert (np.abs(final) <= 10).all()
        assert len(np.unique(final)) > 2, "not normalised"


def test_monitor_keeps_our_keys(tmp_path):
    env = VecMonitor(DiamondGhostVecEnv(8, seed=0), str(tmp_path / "log"), info_keywords=("outcome", "overseen"))
    env.reset()
    dones, infos = until_ends(env, 8)
    info = infos[int(np.flatnonzero(dones)[0])]
    assert info["episode"]["outcome"] == info["outcome"]
    assert len((tmp_path / "log.monitor.csv").read_text().splitlines()) >= 2 + dones.sum()


def test_seeding_as_stable_baselines3_does():
    env = DiamondGhostVecEnv(3, seed=4)
    first = env.reset()
    assert env.get_state()["key"].tolist() == [4, 5, 6]
    second = env.reset()
    assert env.get_state()["episode"].tolist() == [1, 1, 1]
    assert env.seed(4) == [4, 5, 6]
    assert_same(env.get_state()["episode"], np.ones(3, np.int64))  # the seed has no effect before the next reset
    assert_same(env.reset(), first)
    assert_same(env.reset(), second)
    keys = []
    for _ in range(2):
        env = DiamondGhostVecEnv(3)
        env.reset()
        keys += env.get_state()["key"].tolist()
    assert len(set(keys)) == 6


@pytest.mark.parametrize("seed", [1.5, -4])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match=f"non-negative integer or None, got {seed}"):
        DiamondGhostVecEnv(2, seed=seed).reset()


def test_state_and_pickle_go_on_exactly():
    env, other = DiamondGhostVecEnv(5, seed=1), DiamondGhostVecEnv(5)
    env.reset()
    for actions in random_actions(20, 5):
        env.step(actions)
    other.set_state(env.get_state())
    copy = pickle.loads(pickle.dumps(env))
    for actions in random_actions(20, 5, seed=1):
        steps = [e.step(actions) for e in (env, other, copy)]
        for step in steps[1:]:
            assert_same(step[:3], steps[0][:3])
            assert_same(step[3][:], steps[0][3][:])


def test_attributes_and_methods():
    env = DiamondGhostVecEnv(3, render_mode="ansi", oversight=0.25)
    assert env.get_attr("render_mode") == ["ansi"] * 3
    assert env.get_attr("oversight", 1) == [(0.25, 0.25)]
    assert env.get_attr("world", [0, 2]) == [env.world] * 2
    assert not env.has_attr("colour")
    with pytest.raises(AttributeError, match="nor its world has an attribute 'colour'"):
        env.get_attr("colour")
    with pytest.raises(AttributeError, match="cannot set 'oversight': the environments share one world"):
        env.set_attr("oversight", 0.5)
    with pytest.raises(AttributeError, match="no method 'jump'"):
        env.env_method("jump")
    assert env.env_is_wrapped(gym.Wrapper, [1]) == [False]
    env.seed(0)
    env.reset()
    frames = env.env_method("render", indices=[2, 0])
    assert len(frames) == 2
    assert all("@" in frame for frame in frames)
    env.close()


def test_images():
    env = DiamondGhostVecEnv(3, seed=0, render_mode="rgb_array", size=(2, 3))
    env.reset()
    image = env.render()
    assert image is not None
    height, width = env.get_images()[0].shape[:2]
    assert image.shape == (2 * height, 2 * width, 3)  # tiled two by two
    assert_same(image[:height, :width], env.get_images()[0])
