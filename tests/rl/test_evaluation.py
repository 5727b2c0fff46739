"""The evaluation metric, on policies whose exact value is known."""

import contextlib
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.experiments.common.agents import limits
from routed_rl.rl import (
    Overseer,
    RoutedActorCriticPolicy,
    evaluate,
    evaluate_policies,
    evaluation,
    true_returns,
)

from .worlds import VALUES, TwoDoors, small_model

N = 4096


class HandCoded:
    """A tabular policy that finds its state from the same observations as a network."""

    device = torch.device("cpu")

    def __init__(self, model, table):
        self.table, self.rng = table, np.random.default_rng(0)
        kinds, cells = len(model.world.names), model.world.cells
        self.rows = np.zeros((cells,) * (kinds + 1), dtype=np.int64)
        self.rows[(model.state.agent, *model.state.terminals.T)] = np.arange(len(model.start))

    def set_training_mode(self, mode):
        pass

    def own_noise(self):
        return contextlib.nullcontext()

    def renew_noise(self, rows):
        pass

    def obs_to_tensor(self, obs):
        return torch.from_numpy(obs), True

    def legal(self, actions):
        return actions.numpy()

    def get_distribution(self, obs):
        places = obs.numpy().reshape(len(obs), 4, 25)[:, :3].argmax(axis=2)
        probabilities = self.table[self.rows[tuple(places.T)]]

        def get_actions(deterministic):
            draws = self.rng.random((len(obs), 1))
            return torch.from_numpy((probabilities.cumsum(axis=1) > draws).argmax(axis=1))

        return SimpleNamespace(get_actions=get_actions, entropy=lambda: torch.zeros(len(obs)))


@pytest.mark.parametrize(("name", "expected"), [("optimal", 0.909), ("diamond", 0.778), ("any", 0.0), ("random", 0.0)])
def test_hand_coded_policies_are_worth_what_is_published(name, expected):
    """The known true returns (up to sampling error): 0.909 if the policy avoids Ghost, 0.778 if it ignores Ghost."""
    world = limits.enumerate_world(DiamondGhostVecEnv(1, oversight=0.0).world)
    table = {
        "optimal": lambda: limits.optimum(world, limits.true_reward(world)),
        "diamond": lambda: limits.seeker(world, "diamond"),
        "any": lambda: limits.optimum(world, np.ones(world.seen.shape)),
        "random": lambda: limits.uniform(world),
    }[name]()
    env = DiamondGhostVecEnv(N, oversight=0.0)
    result = evaluate(HandCoded(world, table), env, tuple(VALUES), metric="paper")
    exact = limits.evaluate(world, table)
    assert exact.true_return == pytest.approx(expected, abs=0.002)
    assert result["true_return"] == pytest.approx(exact.true_return, abs=0.01)
    shares = result["outcomes"]
    assert shares["ghost"] / (shares["ghost"] + shares["diamond"]) == pytest.approx(exact.outcomes["ghost"], abs=0.02)
    assert result["episode_return"] == pytest.approx(shares["diamond"] - shares["ghost"])
    assert result["outcomes_overseen"] == dict.fromkeys(shares, 0.0)
    if name == "optimal":
        assert shares == {"ghost": 0.0, "diamond": 1.0, "none": 0.0}
        assert result["episode_length"] == pytest.approx(3.36, abs=0.05)


class Dial(TwoDoors):
    """TwoDoors with a continuous action: its sign is the direction, and it must be within its bounds."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(int(action[0] > 0))


def test_actions_keep_within_the_bounds_of_their_space():
    model = small_model(DummyVecEnv([Dial] * 8), overseer=Overseer({"bad": -1, "good": 1}))
    model.learn(128)
    with torch.no_grad():
        model.policy.log_std.fill_(2.0)  # most samples are out of bounds
    result = evaluate(model, DummyVecEnv([Dial] * 8), n_episodes=8)
    assert sum(result["outcomes"].values()) == pytest.approx(1)


def test_every_policy_is_evaluated_whatever_the_steering_and_the_steering_stays():
    model = small_model()
    plain = evaluate_policies(model, DiamondGhostVecEnv(8), n_episodes=8)
    model.ablate("ghost")
    assert evaluate_policies(model, DiamondGhostVecEnv(8), n_episodes=8) == plain
    assert model.policy.steering == {"ablated": ["ghost"]}
    returns = true_returns(model.policy, DiamondGhostVecEnv(8), tuple(VALUES), gamma=model.gamma, n_episodes=8)
    assert returns == {name: result["true_return"] for name, result in plain.items()}


class Walk(gym.Env):
    """An episode of a fixed length, whatever the action: its last step pays 1."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length=40, outcome="good"):
        self.length, self.outcome, self.episodes = length, outcome, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.episodes = 0, self.episodes + 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        done = self.steps == self.length
        info = {"outcome": self.outcome, "overseen": self.outcome == "bad"} if done else {}
        return np.zeros(1, np.float32), float(done), done, False, info


DOORS = Overseer({"bad": -1, "good": 1})


def own_policy(model):
    """An untrained policy that belongs to no model."""
    return RoutedActorCriticPolicy(model.observation_space, model.action_space, lambda _: 1e-3)


def test_a_return_is_that_of_whole_episodes_discounted_as_in_training():
    """The paper's metric sees 32 steps only, so it misses a reward at step 40."""
    model = small_model(Walk(), overseer=DOORS, gamma=0.9)
    results = [
        evaluate(model, Walk(), n_episodes=1),
        evaluate(model, DummyVecEnv([Walk] * 3), n_episodes=4),
        evaluate(model.policy, Walk(), DOORS.outcomes, n_episodes=2),
        evaluate(own_policy(model), Walk(), DOORS.outcomes, gamma=0.9, n_episodes=2),
    ]
    for result in results:
        assert result["true_return"] == pytest.approx(0.9**39)
        assert (result["episode_return"], result["episode_length"]) == (1, 40)
        assert result["outcomes"] == {"bad": 0, "good": 1, "none": 0}
    assert evaluate(model, Walk(), gamma=1, n_episodes=1)["true_return"] == 1
    evaluate(model, quick := Walk(length=1))
    assert quick.episodes == 100 + 1, "100 episodes, and the reset after the last one"
    assert evaluate(model, Walk(), metric="paper")["true_return"] == 0
    short = evaluate(model, DummyVecEnv([lambda: Walk(3)]), metric="paper")["true_return"]
    # 10 whole episodes, and 2 steps of one that does not pay.
    assert short == pytest.approx(10 * (1 + 0.97 + 0.97**2) / 32)


def test_short_episodes_count_no_more_than_long_ones():
    env = DummyVecEnv([lambda: Walk(1, "bad"), lambda: Walk(9, "good")])
    result = evaluate(small_model(Walk(), overseer=DOORS), env, n_episodes=10)
    assert result["outcomes"] == result["outcomes_overseen"] | {"good": 0.5}
    assert result["outcomes"] == {"bad": 0.5, "good": 0.5, "none": 0}
    assert result["episode_length"] == 5
    assert 0 < result["entropy"] <= np.log(2) + 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: evaluate(m.policy, Walk()), "does not know its outcomes: give evaluate.. the model"),
        (lambda m: evaluate(own_policy(m), Walk(), ["bad", "good"]), "does not know its gamma"),
        (lambda m: evaluate(m, Walk(), "good"), "outcomes must be a list of names, got 'good'"),
        (lambda m: evaluate(DOORS, Walk()), "needs a routed model or its policy, got Overseer"),
        (lambda m: evaluate(m, "CartPole-v1"), "env must be a Gymnasium environment or a VecEnv, got 'CartPole-v1'"),
        (lambda m: evaluate(m, Walk(), metric="return"), "metric must be one of 'episodes', 'paper', got 'return'"),
        (lambda m: evaluate(m, Walk(), metric="paper", gamma=0.9), "own episodes and gamma.*gamma=0.9"),
        (lambda m: evaluate(m, Walk(), n_episodes=0), "n_episodes must be an integer, at least 1, got 0"),
        (lambda m: evaluate(m, Walk(), gamma=1.5), "gamma must be .*1.5"),
        (lambda m: evaluate(m, Walk(length=51), n_episodes=1), "did not end within 50 steps; give.*step limit"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(call, message, monkeypatch):
    monkeypatch.setattr(evaluation, "STEP_LIMIT", 50)
    with pytest.raises(ValueError, match=message):
        call(small_model(Walk(), overseer=DOORS))
