"""The single and the vector environment follow Gymnasium's interface, and agree with each other."""

import copy
import doctest
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from routed_rl.envs import VARIANTS, DiamondGhostEnv, DiamondGhostVectorEnv, diamond_ghost
from routed_rl.envs.world import DEFAULT_TERMINALS
from tests.envs.worlds import OPTIONS, assert_same, random_actions

ID = "RoutedRL/DiamondGhost-v0"


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.mark.parametrize("name", OPTIONS)
def test_check_env_has_no_complaint(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, render_mode="rgb_array", **OPTIONS[name])
        check_env(env.unwrapped)
        env.reset(seed=3)
        for action in random_actions(60):  # through the passive checker
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        env.close()


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_registered(name):
    """Every variant passes Gymnasium's own check and has its options."""
    env = gym.make(f"RoutedRL/{name}-v0", oversight=0.5)
    check_env(env.unwrapped)
    world, options = env.unwrapped.world, VARIANTS[name]
    assert (world.supervisor, world.moved) == (options.get("supervisor", False), options.get("moved"))
    assert len(world.walls) == len(options.get("walls", ()))
    assert dict(zip(world.names, world.rewards, strict=True)) == dict(options.get("terminals", DEFAULT_TERMINALS))
    check_env(gym.make(f"RoutedRL/MiniGrid-{name}-v0").unwrapped)
    assert gym.make_vec(f"RoutedRL/{name}-v0", num_envs=3).reset(seed=0)[0].shape == (3, len(world.plane_names) * 25)


@pytest.mark.parametrize("name", OPTIONS)
def test_vector_face_is_sync_vector_env(name):
    """At every step, observations, rewards, ends and nested infos are equal, with their types and masks."""
    ours = gym.make_vec(ID, num_envs=5, **OPTIONS[name])
    assert isinstance(ours, DiamondGhostVectorEnv)
    theirs = gym.make_vec(
        ID,
        num_envs=5,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        **OPTIONS[name],
    )
    for attribute in ("num_envs", "observation_space", "action_space", "single_observation_space"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert ours.single_action_space == theirs.single_action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert_same(ours.reset(seed=11), theirs.reset(seed=11))
    ends = 0
    for actions in random_actions(120, 5):
        step = ours.step(actions)
        assert_same(step, theirs.step(actions))
        assert step[0] in ours.observation_space
        ends += "final_info" in step[-1]
    assert ends > 10
    for seed in (None, [3, None, 1, None, 3]):
        assert_same(ours.reset(seed=seed), theirs.reset(seed=seed))
    mask = np.array([True, False, False, True, True])
    options = [{"reset_mask": mask.copy()} for _ in range(2)]
    assert_same(ours.reset(seed=5, options=options[0]), theirs.reset(seed=5, options=options[1]))
    assert_same(ours.step(actions), theirs.step(actions))


@pytest.mark.parametrize("name", OPTIONS)
def test_scalar_face_is_a_row_of_the_vector_face(name):
    vector, scalar = DiamondGhostVectorEnv(4, **OPTIONS[name]), DiamondGhostEnv(**OPTIONS[name])
    row, seed = 2, 40
    obs, _ = vector.reset(seed=seed)
    assert_same(obs[row], scalar.reset(seed=seed + row)[0])
    for actions in random_actions(100, 4):
        obs, rewards, terminations, truncations, infos = vector.step(actions)
        one, reward, terminated, truncated, info = scalar.step(actions[row])
        assert (reward, terminated, truncated) == (rewards[row], terminations[row], truncations[row])
        if terminated or truncated:
            assert_same(infos["final_obs"][row], one)
            assert info == {key: infos["final_info"][key][row] for key in ("outcome", "overseen")}
            one, _ = scalar.reset()
        else:
            assert info == {}
        assert_same(obs[row], one)


def test_info_at_the_end():
    env = DiamondGhostEnv(size=(1, 2), terminals={"exit": 2.5}, oversight=1.0)
    obs, _ = env.reset(seed=0)
    step = env.step(1 if obs[0] else 3)
    assert step[1:] == (2.5, True, False, {"outcome": "exit", "overseen": True})
    env.reset()
    for _ in range(31):
        assert env.step(0)[1:] == (0.0, False, False, {})
    assert env.step(0)[1:] == (0.0, False, True, {"outcome": None, "overseen": False})
    with pytest.raises(ResetNeeded, match="the episode has ended"):
        env.step(0)


def test_seeding():
    env, other = DiamondGhostEnv(), DiamondGhostEnv()
    first, second, third = (env.reset(seed=seed)[0].tolist() for seed in (5, None, None))
    assert len({tuple(first), tuple(second), tuple(third)}) == 3
    other.reset(seed=9)
    assert [other.reset(seed=seed)[0].tolist() for seed in (5, None, None)] == [first, second, third]
    # without a seed, all environments get different keys
    unseeded = [DiamondGhostEnv() for _ in range(2)]
    for env in unseeded:
        env.reset()
    assert_different_keys([env.get_state()["key"] for env in unseeded])
    vectors = [DiamondGhostVectorEnv(3) for _ in range(2)]
    for vector in vectors:
        vector.reset()
    assert_different_keys([vector.get_state()["key"] for vector in vectors])


def assert_different_keys(arrays):
    keys = np.concatenate(arrays)
    assert len(np.unique(keys)) == len(keys)


@pytest.mark.parametrize("make", [DiamondGhostEnv, lambda: DiamondGhostVectorEnv(2)])
@pytest.mark.parametrize(
    ("seed", "message"), [(1.5, "python integer"), ("one", "got|python"), (-1, "actual value: -1")]
)
def test_bad_seeds(make, seed, message):
    with pytest.raises((gym.error.Error, ValueError), match=message):
        make().reset(seed=seed)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True, False], TypeError, r"got \[True, False\]"),
        (np.array([1, 0]), TypeError, r"got array\(\[1, 0\]\)"),
        (np.array([True]), ValueError, r"shape \(2,\)"),
        (np.array([False, False]), ValueError, "be True somewhere"),
    ],
)
def test_bad_reset_masks(mask, error, message):
    env = DiamondGhostVectorEnv(2)
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.reset(options={"reset_mask": mask})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("make", [DiamondGhostEnv, lambda **o: DiamondGhostVectorEnv(1, **o)])
def test_copies_go_on_alike(make, duplicate):
    env = make(**OPTIONS["walls"])
    env.reset(seed=1)
    env.step(np.array([0]) if env.action_space.shape else 0)
    other = duplicate(env)
    for _ in range(20):
        env.action_space.seed(0)
        action = env.action_space.sample()
        assert_same(env.step(action), other.step(action))
        assert_same(env.reset(), other.reset())


def test_state_goes_on_exactly():
    for make, action in ((DiamondGhostEnv, 2), (lambda: DiamondGhostVectorEnv(1), np.array([2]))):
        env, other = make(), make()
        env.reset(seed=8)
        env.step(action)
        other.set_state(env.get_state())
        assert_same(env.step(action), other.step(action))
        assert_same(env.reset(), other.reset())


def test_registration_by_module_prefix_and_import():
    """In a new interpreter, both ways of making the environment work, and heavy libraries are not imported."""
    code = """
import sys
import gymnasium as gym
env = gym.make("routed_rl.envs:RoutedRL/DiamondGhost-v0", size=4)
assert env.reset(seed=0)[0].shape == (64,)
assert gym.make_vec("RoutedRL/DiamondGhost-v0", num_envs=3).reset(seed=0)[0].shape == (3, 100)
assert gym.spec("RoutedRL/DiamondGhost-v0").max_episode_steps is None
heavy = {"torch", "stable_baselines3", "matplotlib", "minigrid", "pygame"} & set(sys.modules)
assert not heavy, heavy
from routed_rl import envs
faces = {"DiamondGhostEnv", "DiamondGhostVecEnv", "DiamondGhostVectorEnv", "MiniGridDiamondGhostEnv"}
faces |= {"DiamondGhostTensorVecEnv", "CameraDropboxEnv", "CameraDropboxVecEnv"}
any_env = {"Ending", "PartialOversight", "PartialOversightVecEnv", "RECIPES", "Recipe", "SymbolicImage"}
assert set(envs.__all__) <= set(dir(envs))
assert set(envs.__all__) == {*faces, *any_env, "VARIANTS", "World", "make_world"}
assert all(getattr(envs, name) for name in envs.__all__) and "stable_baselines3" in sys.modules
try:
    envs.Diamond
except AttributeError as error:
    assert "no attribute 'Diamond'" in str(error)
else:
    raise AssertionError
"""
    result = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_spawned_workers_need_no_more_than_the_spec():
    """Gymnasium sends only the spec to worker processes; they do not import envs themselves."""
    envs = gym.make_vec(ID, num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"}, size=3)
    try:
        assert_same(envs.reset(seed=4)[0], DiamondGhostVectorEnv(2, size=3).reset(seed=4)[0])
    finally:
        envs.close()


def test_docstring_examples_run():
    assert doctest.testmod(diamond_ghost) == (0, 3)


def test_gymnasium_vector_wrappers():
    envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(ID, num_envs=8))
    envs.reset(seed=0)
    returns = []
    for actions in random_actions(80, 8):
        infos = envs.step(actions)[-1]
        if "final_info" in infos:
            ended = infos["_final_info"]
            reached = {"ghost": -1, "diamond": 1, None: 0}
            expected = [reached[name] for name in infos["final_info"]["outcome"][ended]]
            returns += expected
            assert infos["episode"]["r"][ended].tolist() == expected
    assert len(set(returns)) > 1
