"""The tools of Gymnasium, Stable-Baselines3 and MiniGrid work with MiniGridDiamondGhostEnv."""

import doctest
import itertools
import warnings

import gymnasium as gym
import minigrid.wrappers as wrappers
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from routed_rl.envs import MiniGridDiamondGhostEnv, minigrid
from routed_rl.envs.minigrid import Terminal
from tests.envs.test_minigrid import ID, SEEN, overseen, roll
from tests.envs.worlds import OPTIONS, assert_same


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.mark.parametrize("name", OPTIONS)
def test_gymnasium_has_no_complaint(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The system font")  # from MiniGrid's window
        env = gym.make(ID, render_mode="rgb_array", **OPTIONS[name])
        check_env(env.unwrapped)
        env.reset(seed=3)
        for _ in roll(env):  # through the passive checker
            pass
        env.close()


def test_stable_baselines3_has_no_complaint():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env_sb3(wrappers.ImgObsWrapper(gym.make(ID)))
    assert [str(w.message) for w in caught if "minimal resolution for an image" not in str(w.message)] == []


@pytest.mark.parametrize(
    ("learner", "options"),
    [(PPO, {"n_steps": 64, "n_epochs": 1}), (DQN, {"learning_starts": 50, "buffer_size": 500})],
)
def test_stock_learners_run(learner, options):
    env = wrappers.ImgObsWrapper(gym.make(ID, size=3))
    model = learner("MlpPolicy", env, device="cpu", seed=0, **options).learn(300)
    assert {info["r"] for info in model.ep_info_buffer} <= {-1.0, 0.0, 1.0}
    assert all(p.isfinite().all() for p in model.policy.parameters())


@pytest.mark.parametrize("name", OPTIONS)
def test_minigrids_own_checks(name):
    """MiniGrid's own tests: determinism, agent_sees, positions, encoding, printing, hash and reward range."""
    env, twin = (MiniGridDiamondGhostEnv(**OPTIONS[name]) for _ in range(2))
    for seed in range(5):
        assert_same(env.reset(seed=seed), twin.reset(seed=seed))
        assert env.grid == twin.grid
        assert env.hash() == twin.hash()
    for step, other in zip(roll(env), roll(twin), strict=True):
        obs = step[0]
        assert_same(step, other)
        assert obs in env.observation_space
        assert obs["mission"] == env.mission == f"get to the {env.colours[np.argmax(env.world.rewards)]} goal square"
        assert 0 < env.agent_pos[0] < env.width - 1
        assert 0 < env.agent_pos[1] < env.height - 1
        grid, visible = Grid.decode(obs["image"])
        assert_same(grid.encode(visible)[..., 0], obs["image"][..., 0])
        for i, j in itertools.product(range(env.width), range(env.height)):
            if isinstance(env.grid.get(i, j), Terminal) and (i, j) != tuple(env.agent_pos):
                place = env.relative_coords(i, j)
                assert env.agent_sees(i, j) == (place is not None and bool(visible[place]))
        assert len(env.pprint_grid().splitlines()) == env.height
        if len(step) == 5:
            assert env.reward_range[0] <= step[1] <= env.reward_range[1]
    tops = env.colours if env.world.moved != "overseen" else env.colours[-1:]  # the last may lie on top of another
    assert all((colour, "goal") in env.grid for colour in tops)


WRAPPERS = {
    wrapper.__name__: wrapper
    for wrapper in vars(wrappers).values()
    if isinstance(wrapper, type) and wrapper.__module__ == wrappers.__name__
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_minigrids_wrappers_work(name):
    options = {"NoDeath": {"no_death_types": ("lava",)}}.get(name, {})
    env = WRAPPERS[name](gym.make(ID, **SEEN), **options)
    obs, _ = env.reset()
    for step in itertools.chain([(obs,)], roll(env, 30)):
        if name == "DictObservationSpaceWrapper":  # its space drops extra keys, but its observations keep them
            obs = {key: step[0][key] for key in env.observation_space.spaces}
            assert env.string_to_indices(env.unwrapped.mission) == [word for word in obs["mission"] if word]
        else:
            obs = step[0]
        assert obs in env.observation_space


def test_no_wrapper_gives_the_image_a_view_that_the_oversight_plane_does_not_have():
    with pytest.raises(ValueError, match="agent_view_size=5, without ViewSizeWrapper"):
        wrappers.ViewSizeWrapper(gym.make(ID, **SEEN), agent_view_size=5).reset(seed=0)
    same = wrappers.ViewSizeWrapper(gym.make(ID, **SEEN, agent_view_size=5), agent_view_size=5)
    for seed in range(5):
        obs = same.reset(seed=seed)[0]
        obs["oversight"][2, 4] = 0  # MiniGrid's image shows the player's own cell as empty
        assert_same(obs["image"][..., 2], obs["oversight"])


def test_wrapped_images_keep_the_marks():
    full, hot, target = (
        wrapper(gym.make(ID, **SEEN).unwrapped)
        for wrapper in (wrappers.FullyObsWrapper, wrappers.OneHotPartialObsWrapper, wrappers.DirectionObsWrapper)
    )
    for seed in range(20):
        image, marks = full.reset(seed=seed)[0]["image"], overseen(full.unwrapped)
        player = full.unwrapped.agent_pos
        assert image[player][0] == OBJECT_TO_IDX["agent"]
        image[player][2] = marks[player]
        assert_same(image[..., 2].astype(int), marks)
        obs = hot.reset(seed=seed)[0]
        state = obs["image"][..., len(OBJECT_TO_IDX) + len(COLOR_TO_IDX) + 1]
        obs["oversight"][3, 6] = 0
        assert_same(state, obs["oversight"])
        target.reset(seed=seed)
        assert target.unwrapped.grid.get(*target.goal_position).name == "diamond"


def test_spawned_workers_and_the_docstrings_example():
    make = {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn"}, "wrappers": [wrappers.ImgObsWrapper]}
    vector = gym.make_vec("routed_rl.envs:" + ID, num_envs=2, size=3, **make)
    try:
        image = vector.reset(seed=4)[0][1]
    finally:
        vector.close()
    assert_same(image, MiniGridDiamondGhostEnv(size=3).reset(seed=5)[0]["image"])
    assert doctest.testmod(minigrid) == (0, 3)
