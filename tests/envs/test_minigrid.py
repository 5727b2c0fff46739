"""The MiniGrid environment: the same episodes as DiamondGhostEnv, with a turning player and visible oversight."""

import copy
import itertools
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from minigrid.core.actions import Actions
from minigrid.core.constants import OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Goal, Wall

from routed_rl.envs import DiamondGhostEnv, MiniGridDiamondGhostEnv
from routed_rl.envs.minigrid import OverseenFloor, Terminal
from tests.envs.test_world import BAD
from tests.envs.worlds import OPTIONS, assert_same

ID = "RoutedRL/MiniGrid-DiamondGhost-v0"
SEEN = {"oversight": 0.5, "spurious_oversight": 0.2, "size": (4, 6), "walls": [(1, 1), (1, 2)]}


def moves(steps, seed=0):
    return np.random.default_rng(seed).integers(0, 7, size=steps).tolist()


def roll(env, steps=100, seed=0):
    """Act at random, and reset after each end; yield the results of all steps and resets."""
    for action in moves(steps, seed):
        step = env.step(action)
        yield step
        if step[2] or step[3]:
            yield env.reset()


def overseen(env):
    """The cells that are marked as overseen, (width, height) int, from the oversight plane of the dynamics."""
    marks = np.zeros((env.width, env.height), dtype=int)
    marks[1:-1, 1:-1] = env._batch.state.oversight[0].reshape(env.world.height, env.world.width).T
    return marks


@pytest.mark.parametrize("name", OPTIONS)
def test_layouts_are_those_of_the_first_world(name):
    env, other = MiniGridDiamondGhostEnv(**OPTIONS[name]), DiamondGhostEnv(**OPTIONS[name])
    for seed in (7, None, None, 2**64 - 5, None):
        env.reset(seed=seed)
        planes = other.reset(seed=seed)[0].reshape(other.world.observation_shape)
        planes = dict(zip(other.world.plane_names, planes, strict=True))
        seen = np.zeros_like(planes["oversight"])
        for row, column in np.ndindex(seen.shape):
            cell = env.grid.get(column + 1, row + 1)
            here = [kind for kind in other.world.names if planes[kind][row, column]][-1:]  # what lies on top
            assert here == ([cell.name] if isinstance(cell, Terminal) else [])
            assert isinstance(cell, Wall) == bool("walls" in planes and planes["walls"][row, column])
            seen[row, column] = isinstance(cell, OverseenFloor) or (bool(here) and cell.overseen)
        assert_same(seen, planes["oversight"])
        assert planes["player"][env.agent_pos[1] - 1, env.agent_pos[0] - 1]
        around = env.grid.encode()[..., 0] == OBJECT_TO_IDX["wall"]
        around[1:-1, 1:-1] = True
        assert around.all()


@pytest.mark.parametrize("options", [SEEN, OPTIONS["seen"], {**SEEN, "agent_view_size": 3, "see_through_walls": True}])
def test_the_oversight_plane_and_the_images_state_show_the_marks_in_view(options):
    env = MiniGridDiamondGhostEnv(**options)
    env.reset(seed=0)
    size = env.agent_view_size
    for obs, *_ in roll(env, 150, seed=1):
        plane, image, marks = obs["oversight"], obs["image"], overseen(env)
        expected = np.zeros_like(plane)
        for i, j in itertools.product(range(env.width), range(env.height)):
            if env.in_view(i, j):
                expected[env.get_view_coords(i, j)] = marks[i, j]
        expected[image[..., 0] == OBJECT_TO_IDX["unseen"]] = 0
        assert_same(plane, expected)
        expected[size // 2, size - 1] = 0  # MiniGrid's image shows the player's own cell as empty
        assert_same(image[..., 2], expected)


def test_reaching_a_terminal():
    reached = set()
    for seen, seed in itertools.product((0.0, 1.0), range(60)):
        env = MiniGridDiamondGhostEnv(size=(1, 3), oversight=seen)
        env.reset(seed=seed)
        if env.agent_pos[0] != 2:
            continue
        goal = env.grid.get(1 + 2 * (seed % 2), 1)
        while env.agent_dir != (2, 0)[seed % 2]:
            assert env.step(Actions.left)[1:] == (0.0, False, False, {})
        for action in (Actions.pickup, Actions.drop, Actions.toggle, Actions.done):
            assert env.step(action)[1:] == (0.0, False, False, {})
        obs, *step = env.step(Actions.forward)
        reward = {"ghost": -1.0, "diamond": 1.0}[goal.name]
        assert step == [reward, True, False, {"outcome": goal.name, "overseen": seen == 1}]
        assert obs["oversight"][3, 6] == seen and tuple(obs["image"][3, 6]) == goal.encode()
        with pytest.raises(ResetNeeded, match="the episode has ended"):
            env.step(0)
        env.reset()
        reached.add((goal.name, seen))
    assert len(reached) == 4


def test_the_cap():
    env = gym.make(ID, max_steps=50)  # MiniGrid's test_max_steps_argument
    env.reset(seed=0)
    for _ in range(49):
        assert env.step(4)[1:] == (0.0, False, False, {})
    assert env.step(4)[1:] == (0.0, False, True, {"outcome": None, "overseen": False})
    with pytest.raises(ResetNeeded, match="the episode has ended"):
        env.step(4)
    assert MiniGridDiamondGhostEnv(size=(2, 3)).max_steps == 24
    env = MiniGridDiamondGhostEnv(size=(1, 2), terminals={"exit": 2.5}, max_steps=1)
    env.reset(seed=0)
    env.agent_dir = 0 if env.agent_pos[0] == 1 else 2
    assert env.step(2)[1:4] == (2.5, True, False)


def test_pictures(monkeypatch):
    monkeypatch.setattr(Grid, "tile_cache", {})
    looks = itertools.product([("ghost", "purple"), ("a", "purple"), ("a", "green")], [False, True])
    objects = [*(Terminal(*look, 1.0, seen) for look, seen in looks), Goal("green"), OverseenFloor(), None]
    tiles = [Grid.render_tile(each).tobytes() for each in objects]  # no two objects share an entry in MiniGrid's cache
    assert len(set(tiles)) == len(objects)
    assert [Grid.render_tile(each).tobytes() for each in objects] == tiles
    for options, shape in (({"size": (2, 4)}, (32, 48, 3)), ({"agent_pov": True, "agent_view_size": 5}, (40, 40, 3))):
        env = gym.make(ID, render_mode="rgb_array", tile_size=8, **options)
        env.reset(seed=0)
        env.step(0)
        assert env.render().shape == shape


def through_state(env):
    other, saved = MiniGridDiamondGhostEnv(**SEEN), env.get_state()
    assert {(array.dtype.name, array.shape) for array in saved.values()} == {("int64", (1,))}
    other.set_state(saved)
    assert_same(other.get_state(), saved)
    return other


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env)), through_state])
def test_copies_go_on_alike(duplicate):
    env = MiniGridDiamondGhostEnv(**SEEN)
    env.reset(seed=2**64 - 3)
    for _ in roll(env, 40):
        other = duplicate(env)
        assert_same(other.gen_obs(), env.gen_obs())
        assert other.hash() == env.hash()
    assert_same(list(roll(other)), list(roll(env)))


def test_what_it_refuses():
    for options, message in (
        *BAD,
        ({"render_mode": "ansi"}, "one of human, rgb_array, got 'ansi'"),
        ({"agent_view_size": 4}, "odd integer of at least 3, got 4"),
        ({"terminals": dict.fromkeys("abcdefg", 1.0)}, "6 colours, too few for 7 terminals"),
    ):
        with pytest.raises(ValueError, match=message):
            MiniGridDiamondGhostEnv(**options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sise'"):
        MiniGridDiamondGhostEnv(sise=3)
    env = MiniGridDiamondGhostEnv(terminals=dict.fromkeys("abcdef", 1.0))
    assert len(set(env.colours)) == 6
    for use in (lambda: env.step(0), env.get_state):
        with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
            use()
    env.reset(seed=0)
    for action in (7, -1, 1.0, "left"):
        with pytest.raises(ValueError, match=f"0 to 6, got {action!r}"):
            env.step(action)
    before = env.get_state()
    for change, message in (
        ({"direction": None}, r"'direction' must be int64 of shape \(1,\), 0 to 3, got None"),
        ({"direction": np.array([4])}, "got array"),
        ({"agent": np.array([25])}, "of another world"),
        ({"steps": np.array([101])}, "of another world"),
        ({"size": np.array([5])}, "must hold key, episode, steps, agent, got .* size"),
    ):
        with pytest.raises(ValueError, match=message):
            env.set_state({**before, **change})
    assert_same(env.get_state(), before)
