"""The wrapper that makes any environment one with partial oversight, and its vector form."""

import doctest
import itertools
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from routed_rl.envs import DiamondGhostEnv, DiamondGhostVecEnv, PartialOversight, PartialOversightVecEnv
from routed_rl.envs import partial_oversight as module
from routed_rl.rl import check_oversight_env
from tests.envs.worlds import assert_same

SPACES = {
    "flat": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "whole numbers": spaces.Box(-9, 9, (2,), np.int16),
    "channels last": spaces.Box(0, 9, (5, 4, 3), np.int16),
    "channels first": spaces.Box(0, 9, (3, 5, 4), np.int16),
    "picture": spaces.Box(0, 255, (5, 5, 3), np.uint8),
    "dict": spaces.Dict({"place": spaces.Box(-9, 9, (2,), np.float32)}),
}


class Walk(gym.Env):
    """A line with an end at -3 and one at 3. A reward of 0.5 for each step to the right. At most 9 steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, kind="flat"):
        self.observation_space = SPACES[kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(-2, 3)), 0
        return self._obs(), {"first": True}

    def step(self, action):
        self.place += 2 * int(action) - 1
        self.steps += 1
        over = abs(self.place) == 3
        return self._obs(), 0.5 * int(action), over, self.steps == 9, {"place": self.place}

    def _obs(self):
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {"place": np.array([self.place, self.steps], np.float32)}
        return np.full(space.shape, self.place if space.low.min() < 0 else abs(self.place), space.dtype)


ENDS = {"left": lambda end: end.info["place"] == -3, "right": lambda end: end.info["place"] == 3}


def by_place(ending):
    return {-3: "left", 3: "right"}.get(ending.info["place"])


def shorter_is_likelier(ending):
    return 1 / ending.length


def endings(env, episodes, seed=0):
    """Return the infos of the last steps of random episodes, and the numbers of their steps."""
    rng = np.random.default_rng(seed)
    found = []
    for episode in range(episodes):
        env.reset(seed=seed if episode == 0 else None)
        for step in range(1, 1000):
            *_, terminated, truncated, info = env.step(rng.integers(2))
            if terminated or truncated:
                found.append((info, step))
                break
            assert not {"outcome", "overseen"} & info.keys()
    return found


# --- outcomes and draws ---------------------------------------------------------------------------


def test_the_first_true_predicate_names_the_outcome_from_all_that_is_known_of_the_end():
    seen = []

    def keep(ending):
        seen.append(ending)

    env = PartialOversight(Walk(), {"kept": keep, "right": ENDS["right"], "any": lambda end: True}, probability=1)
    env.reset(seed=0)
    env.unwrapped.place = 0
    steps = [env.step(action) for action in (0, 1, 1, 1, 1)]
    info = {"place": 3, "outcome": "right", "overseen": True}
    assert steps[-1][1:] == (0.5, True, False, info) and env.outcomes == ("kept", "right", "any")
    (ending,) = seen
    assert ending[1:] == (1, 0.5, 2.0, 5, True, False, {"place": 3}) and ending.observation.tolist() == [3, 3]
    env.reset()
    env.unwrapped.place = 0
    steps = [env.step(action) for action in (0, 1, 0, 1, 0, 1, 0, 1, 0)]
    assert steps[-1][2:] == (False, True, {"place": -1, "outcome": "any", "overseen": True})
    assert seen[1][3:7] == (2.0, 9, False, True)


def test_an_end_at_the_step_limit_is_no_cut():
    env = PartialOversight(TimeLimit(Walk(), 1), lambda end: "cut" if end.truncated else "end", outcomes=["cut", "end"])
    for place, outcome in ((0, "cut"), (2, "end")):
        env.reset(seed=0)
        env.unwrapped.place = place
        assert env.step(1)[4]["outcome"] == outcome


def test_without_outcome_nothing_is_overseen():
    env = PartialOversight(Walk(), {"never": lambda end: False}, probability=1)
    assert {(info["outcome"], info["overseen"]) for info, _ in endings(env, 20)} == {(None, False)}


def test_the_share_of_overseen_episodes_is_the_probability():
    env = PartialOversight(Walk(), lambda end: "end", outcomes=["end"], probability=0.3)
    overseen = [info["overseen"] for info, _ in endings(env, 1000)]
    assert 270 < sum(overseen) < 330
    after = [this for last, this in itertools.pairwise(overseen) if last]
    assert 0.25 < np.mean(after) < 0.35  # a draw does not depend on the one before


def test_each_outcome_has_its_own_probability():
    env = PartialOversight(Walk(), ENDS, probability={"left": 0, "right": 1})
    found = {(info["outcome"], info["overseen"]) for info, _ in endings(env, 100)}
    assert found == {("left", False), ("right", True), (None, False)}


def test_the_probability_may_depend_on_the_end():
    env = PartialOversight(Walk(), ENDS, probability=lambda end: end.length < 5)
    with pytest.raises(ValueError, match=r"what probability returns must be .*, got (Tru|Fals)e"):
        endings(env, 20)
    env = PartialOversight(Walk(), ENDS, probability=lambda end: float(end.length < 5))
    found = [(info["overseen"], steps) for info, steps in endings(env, 200) if info["outcome"] is not None]
    assert all(overseen == (steps < 5) for overseen, steps in found) and len({steps for _, steps in found}) > 4


def test_seeds_reproduce():
    one, same, other = (endings(PartialOversight(Walk(), ENDS, probability=0.5), 200, seed) for seed in (3, 3, 4))
    assert one == same != other


def test_draws_are_independent_of_a_world_that_hashes_the_same_seed():
    own = []
    world = DiamondGhostEnv(oversight=0.5, size=(1, 3))
    env = PartialOversight(
        world, lambda end: own.append(end.info["overseen"]) or "end", outcomes=["end"], probability=0.5
    )
    drawn = [info["overseen"] for info, _ in endings(env, 400)]
    assert abs(np.corrcoef(own, drawn)[0, 1]) < 0.1
    assert_same(env.reset(seed=5)[0], DiamondGhostEnv(oversight=0.5, size=(1, 3)).reset(seed=5)[0])


def test_a_step_limit_outside_leaves_the_info_of_cut_episodes_alone():
    outside = TimeLimit(PartialOversight(Walk(), ENDS), 1)
    outside.reset(seed=0)
    outside.unwrapped.place = 0
    assert outside.step(1)[2:] == (False, True, {"place": 1})
    check_oversight_env(outside, list(ENDS))
    check_oversight_env(TimeLimit(PartialOversight(Walk(), ENDS), 5), list(ENDS))


# --- visible --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("probability", [0.5, {"left": 0.5, "right": 0.5}])
def test_flags_say_from_the_start_what_will_be_overseen(kind, probability):
    env = PartialOversight(Walk(kind), ENDS, probability=probability, visible=True)
    hidden = PartialOversight(Walk(kind), ENDS, probability=probability)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(different from the unwrapped|infinity).*")
        check_env(env, skip_render_check=True)
    count, shown, rng = (1 if probability == 0.5 else 2), set(), np.random.default_rng(0)
    for episode in range(40):
        (obs, _), (plain, _) = (each.reset(seed=7 if episode == 0 else None) for each in (env, hidden))
        flags = read(kind, obs, plain, count)
        while True:
            action = rng.integers(2)
            obs, _, terminated, truncated, info = env.step(action)
            plain = hidden.step(action)[0]
            assert obs in env.observation_space and read(kind, obs, plain, count) == flags
            if terminated or truncated:
                break
        shown.add(flags)
        if info["outcome"] is not None:
            assert info["overseen"] == flags[env.outcomes.index(info["outcome"]) if count == 2 else 0]
    assert len(shown) == 2**count


def read(kind, obs, plain, count):
    """Return the flags in an observation, after a check that the rest of it is unchanged."""
    if kind == "dict":
        assert_same(obs["place"], plain["place"])
        flags = obs["oversight"]
    else:
        axis = 0 if kind == "channels first" else -1
        rest, planes = np.split(obs, [plain.shape[axis]], axis=axis)
        assert_same(rest, plain)
        planes = np.moveaxis(planes, axis, -1).reshape(-1, count)
        assert (planes == planes[0]).all()
        flags = planes[0] / (255 if kind == "picture" else 1)
    assert flags.shape == (count,) and set(flags.tolist()) <= {0, 1}
    return tuple(map(bool, flags))


class Odd(Walk):
    def __init__(self, space):
        self.observation_space = space


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.Box(0, 1, (2, 2), np.float32),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict({"oversight": spaces.Discrete(2)}),
    ],
)
def test_other_observation_spaces_cannot_show_flags(space):
    with pytest.raises(ValueError, match=r"can be visible in a Box of one axis.*got .*use visible=False"):
        PartialOversight(Odd(space), ENDS, visible=True)
    PartialOversight(Odd(space), ENDS)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda *a, **o: PartialOversight(Walk(), *a, **o),
        lambda *a, **o: PartialOversightVecEnv(DummyVecEnv([Walk]), *a, **o),
    ],
)
@pytest.mark.parametrize(
    ("outcome", "options", "message"),
    [
        ({}, {}, "at least one outcome: give a list of names as outcomes=, got ()"),
        (by_place, {}, "at least one outcome: give a list of names as outcomes=, got None"),
        (by_place, {"outcomes": "left"}, "at least one outcome: give a list of names as outcomes=, got 'left'"),
        (by_place, {"outcomes": ["a", "a"]}, "must be different, non-empty strings, got ['a', 'a']"),
        (by_place, {"outcomes": ["a", 3]}, "must be different, non-empty strings, got ['a', 3]"),
        (
            ENDS,
            {"outcomes": ["left"]},
            "outcomes is only for a function; ['left', 'right'] are named already, got ['left']",
        ),
        ({"left": 3}, {}, "the predicate of outcome 'left' must be a function of the Ending, got 3"),
        ("left", {}, "outcome must be a mapping of names to predicates or one function, got 'left'"),
        (ENDS, {"probability": 1.5}, "probability must be a probability between 0 and 1, got 1.5"),
        (ENDS, {"probability": math.nan}, "probability must be a probability between 0 and 1, got nan"),
        (ENDS, {"probability": "much"}, "probability must be a probability between 0 and 1, got 'much'"),
        (
            ENDS,
            {"probability": {"left": -1, "right": 0}},
            "probability of 'left' must be a probability between 0 and 1, got -1",
        ),
        (ENDS, {"probability": {"left": 1}}, "must name exactly the outcomes ['left', 'right'], got ['left']"),
        (ENDS, {"probability": {"left": 1, "right": 1, "up": 1}}, "got ['left', 'right', 'up']"),
        (
            ENDS,
            {"probability": shorter_is_likelier, "visible": True},
            "cannot be visible where probability is a function",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(make, outcome, options, message):
    with pytest.raises(ValueError) as error:
        make(outcome, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_environment_of_the_other_kind_is_refused_with_the_class_for_it():
    with pytest.raises(ValueError, match=r"^env must be a Gymnasium environment, got <.*: use PartialOversightVecEnv$"):
        PartialOversight(DummyVecEnv([Walk]), ENDS)
    with pytest.raises(ValueError, match=r"^venv must be a VecEnv of .*, got <.*: use PartialOversight$"):
        PartialOversightVecEnv(Walk(), ENDS)
    for wrapper in (PartialOversight, PartialOversightVecEnv):
        with pytest.raises(ValueError, match=r"got None$"):
            wrapper(None, ENDS)


@pytest.mark.parametrize(
    ("outcome", "options", "message"),
    [
        (lambda end: "up", {"outcomes": ["left", "right"]}, "must return one of ['left', 'right'] or None, got 'up'"),
        (lambda end: 0, {"outcomes": ["left", "right"]}, "must return one of ['left', 'right'] or None, got 0"),
        (
            ENDS,
            {"probability": lambda end: 2.5},
            "what probability returns must be a probability between 0 and 1, got 2.5",
        ),
        (ENDS, {"probability": lambda end: math.nan}, "got nan"),
        (ENDS, {"probability": lambda end: None}, "got None"),
    ],
)
def test_bad_results_of_functions_are_refused_at_the_end_of_an_episode(outcome, options, message):
    with pytest.raises(ValueError) as error:
        endings(PartialOversight(Walk(), outcome, **options), 20)
    assert message in str(error.value) and "\n" not in str(error.value)


# --- the vector form ------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 2**32 - 10),
    st.sampled_from(list(SPACES)),
    st.sampled_from([(0.4, False), (0.4, True), ({"left": 0.2, "right": 0.7}, True), (shorter_is_likelier, False)]),
    st.lists(st.integers(0, 7), min_size=1, max_size=60),
    st.booleans(),
)
def test_a_row_of_the_vector_form_is_the_scalar_form(num_envs, seed, kind, oversight, actions, function):
    outcome, outcomes = (by_place, ["left", "right"]) if function else (ENDS, None)
    options = {"outcomes": outcomes, "probability": oversight[0], "visible": oversight[1]}
    vector = PartialOversightVecEnv(DummyVecEnv([lambda: Walk(kind)] * num_envs), outcome, **options)
    rows = [PartialOversight(Walk(kind), outcome, **options) for _ in range(num_envs)]
    assert vector.observation_space == rows[0].observation_space and vector.outcomes == rows[0].outcomes
    vector.seed(seed)
    observations = vector.reset()
    for i, row in enumerate(rows):
        assert_same(pick(observations, i), row.reset(seed=seed + i)[0])
    for bits in actions:
        chosen = np.array([(bits >> i) & 1 for i in range(num_envs)])
        observations, rewards, dones, infos = vector.step(chosen)
        for i, row in enumerate(rows):
            obs, reward, terminated, truncated, info = row.step(chosen[i])
            assert (rewards[i], dones[i]) == (reward, terminated or truncated)
            if dones[i]:
                assert_same(infos[i].pop("terminal_observation"), obs)
                assert infos[i].pop("TimeLimit.truncated") == (not terminated)
                obs = row.reset()[0]
            else:
                infos[i].pop("TimeLimit.truncated")
            assert infos[i] == info
            assert_same(pick(observations, i), obs)


def pick(observations, row):
    return (
        {key: array[row] for key, array in observations.items()}
        if isinstance(observations, dict)
        else observations[row]
    )


def test_the_vector_form_overrules_a_world_that_has_oversight_already():
    env = PartialOversightVecEnv(
        DiamondGhostVecEnv(8, seed=0, oversight=0),
        lambda end: end.info["outcome"],
        outcomes=["ghost", "diamond"],
        probability=1,
    )
    check_oversight_env(env, env.outcomes)
    env.reset()
    ended = [info for _ in range(40) for info in env.step(np.ones(8, dtype=np.int64))[3] if info]
    assert all(info["overseen"] == (info["outcome"] is not None) for info in ended)
    assert {info["outcome"] for info in ended} == {"ghost", "diamond", None}


def test_docstring_examples_run():
    assert doctest.testmod(module) == (0, 4)
