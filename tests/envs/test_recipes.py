"""Known environments as environments with partial oversight."""

import itertools
import warnings
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from minigrid.core.actions import Actions
from minigrid.core.constants import COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX
from stable_baselines3.common.vec_env import DummyVecEnv

from routed_rl.envs import RECIPES, SymbolicImage
from routed_rl.envs.recipes import make_recipe
from routed_rl.rl import Overseer, RoutedPPO, SymbolicImageEncoder, check_oversight_env
from tests.envs.worlds import assert_same

ON_MINIGRID = [name for name, recipe in RECIPES.items() if "MiniGrid" in recipe.base]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_follow_gymnasium_and_report_outcomes(name):
    recipe = RECIPES[name]
    assert recipe.id == f"RoutedRL/{name}-v0" and list(recipe.values) == list(recipe.outcomes)
    assert sorted(recipe.values.values()) == [-1, 1] and recipe.description.endswith(".")
    for visible in (False, True):
        env = gym.make(recipe.id, probability=0.5, visible=visible)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*(different from the unwrapped|infinity).*")
            check_env(env, skip_render_check=True)
        assert env.spec.id == recipe.id
    check_oversight_env(env, list(recipe.values), episodes=3)


@pytest.mark.parametrize("name", RECIPES)
def test_seeds_reproduce(name):
    env, other = (gym.make(RECIPES[name].id, probability=0.5, visible=True) for _ in range(2))
    assert_same(env.reset(seed=2), other.reset(seed=2))
    env.action_space.seed(0)
    for _ in range(60):
        action = env.action_space.sample()
        step = env.step(action)
        assert_same(step, other.step(action))
        if step[2] or step[3]:
            assert_same(env.reset(), other.reset())


# --- every outcome can be reached -----------------------------------------------------------------


def towards(env, sought, last):
    """Return the first action of a shortest way over empty cells to face a cell that is ``sought``, then ``last``."""
    here = (*map(int, env.agent_pos), env.agent_dir)
    first, queue = {here: None}, deque([here])
    while queue:
        x, y, direction = state = queue.popleft()
        ahead = tuple(map(int, DIR_TO_VEC[direction] + (x, y)))
        cell = env.grid.get(*ahead)
        if cell is not None and sought(cell):
            return last if first[state] is None else first[state]
        moves = {Actions.left: (x, y, (direction - 1) % 4), Actions.right: (x, y, (direction + 1) % 4)}
        if cell is None:
            moves[Actions.forward] = (*ahead, direction)
        for action, state_after in moves.items():
            if state_after not in first:
                first[state_after] = action if first[state] is None else first[state]
                queue.append(state_after)
    return Actions.left  # there is no way yet


def sought_for(outcome, env):
    """Return whether a cell is the one at which an episode of this outcome ends, and the last action."""
    wanted = getattr(env, "targetType", None), getattr(env, "targetColor", None)
    return {
        "goal": (lambda cell: cell.type == "goal", Actions.forward),
        "lava": (lambda cell: cell.type == "lava", Actions.forward),
        "collision": (lambda cell: cell.type == "ball", Actions.forward),
        "wanted": (lambda cell: (cell.type, cell.color) == wanted, Actions.pickup),
        "other": (lambda cell: cell.can_pickup() and (cell.type, cell.color) != wanted, Actions.pickup),
    }[outcome]


@pytest.mark.parametrize("name", ON_MINIGRID)
def test_a_planner_reaches_each_outcome_on_minigrid(name):
    env, values = gym.make(RECIPES[name].id, probability=1), RECIPES[name].values
    for outcome, seed in itertools.product(values, range(3)):
        env.reset(seed=seed)
        sought, last = sought_for(outcome, env.unwrapped)
        ended, rewards = False, []
        while not ended:
            _, reward, terminated, truncated, info = env.step(int(towards(env.unwrapped, sought, last)))
            ended = terminated or truncated
            rewards.append(reward)
        assert (info["outcome"], info["overseen"]) == (outcome, True)
        assert rewards == [0.0] * (len(rewards) - 1) + [values[outcome]]


@pytest.mark.parametrize(("name", "actions"), [("CartPole", (1, 0)), ("MountainCarContinuous", ([-1.0], [1.0]))])
def test_one_action_again_and_again_reaches_left_and_the_other_right(name, actions):
    env = gym.make(RECIPES[name].id, probability=1)
    for outcome, action in zip(("left", "right"), actions, strict=True):
        action = np.array(action, env.action_space.dtype)
        found = set()
        for seed in range(20):
            env.reset(seed=seed)
            ended = False
            while not ended:
                _, reward, terminated, truncated, info = env.step(action)
                ended = terminated or truncated
            assert reward == RECIPES[name].values.get(info["outcome"], 0) and terminated == (
                info["outcome"] is not None
            )
            found.add(info["outcome"])
        assert outcome in found and found <= ({outcome} if name == "CartPole" else {"left", "right", None})


@pytest.mark.parametrize(("name", "options"), [("LavaGapS5", {"max_steps": 2}), ("CartPole", {"max_episode_steps": 2})])
def test_a_step_limit_reaches_no_outcome(name, options):
    env = make_recipe(name, probability=1, **options)
    env.reset(seed=0)
    env.step(0)
    assert env.step(0)[1:] == (0.0, False, True, {"outcome": None, "overseen": False})


# --- what the observation shows -------------------------------------------------------------------


def test_the_image_of_fetch_shows_the_wanted_object():
    env = gym.make(RECIPES["Fetch-5x5-N2"].id)
    wanted = set()
    for seed in range(10):
        image = env.reset(seed=seed)[0]
        kind, colour = env.unwrapped.targetType, env.unwrapped.targetColor
        assert (image[..., 3] == OBJECT_TO_IDX[kind]).all() and (image[..., 4] == COLOR_TO_IDX[colour]).all()
        assert_same(image[..., :3].copy(), env.unwrapped.gen_obs()["image"])
        wanted.add((kind, colour))
    assert len(wanted) > 4


def test_a_symbolic_image_has_the_bounds_of_its_categories():
    env = SymbolicImage(gym.make("minigrid:MiniGrid-Empty-5x5-v0", agent_view_size=3))
    assert env.observation_space.shape == (3, 3, 3) and env.observation_space.high[0, 1].tolist() == [10, 5, 3]
    assert_same(env.reset(seed=0)[0], env.unwrapped.gen_obs()["image"])


# --- learners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_two_updates_of_ppo(name):
    recipe = RECIPES[name]
    env = DummyVecEnv([lambda: gym.make(recipe.id, probability=0.5, visible=True)] * 2)
    networks = {"hidden": (8,), "value_hidden": (8,)}
    if name in ON_MINIGRID:
        networks |= {"features_extractor_class": SymbolicImageEncoder}
    model = RoutedPPO(
        "MlpPolicy", env, Overseer(recipe.values), seed=0, device="cpu", n_steps=32, policy_kwargs=networks
    )
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(2 * 2 * 32)
    assert model._n_updates == 2 and all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert any((old != new).any() for old, new in zip(before, model.policy.parameters(), strict=True))
    if name == "Fetch-5x5-N2":
        assert model.policy.features_extractor.categories == (11, 6, 4, 11, 6, 2)
