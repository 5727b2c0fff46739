"""The evaluation metric, on policies whose exact value is known."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.experiments.common.agents import limits
from routed_rl.rl import Overseer, evaluate, evaluate_policies

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
    result = evaluate(HandCoded(world, table), DiamondGhostVecEnv(N, oversight=0.0), tuple(VALUES), seed=0)
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
    result = evaluate(model.policy, DummyVecEnv([Dial] * 8), model.overseer.outcomes, seed=0)
    assert sum(result["outcomes"].values()) == pytest.approx(1)


def test_every_policy_is_evaluated_whatever_the_steering_and_the_steering_stays():
    model = small_model()
    plain = evaluate_policies(model.policy, DiamondGhostVecEnv(8), tuple(VALUES), seed=3)
    model.ablate("ghost")
    assert evaluate_policies(model.policy, DiamondGhostVecEnv(8), tuple(VALUES), seed=3) == plain
    assert model.policy.steering == {"ablated": ["ghost"]}
