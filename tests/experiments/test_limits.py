"""Exact values against the reference table, against sampling, and against a sum over all histories."""

import numpy as np
import pytest

from routed_rl.envs import DiamondGhostVectorEnv, make_world
from routed_rl.experiments.common.agents.limits import (
    GAMMA,
    STEPS,
    enumerate_world,
    evaluate,
    limits,
    naive_reward,
    optimum,
    seeker,
    true_reward,
    uniform,
)

# Return and share of Ghost among the terminals reached, by oversight.
NAIVE = {0.01: (0.014, 0.49), 0.05: (0.062, 0.48), 0.1: (0.117, 0.45), 0.3: (0.333, 0.35), 0.8: (0.768, 0.10)}


@pytest.mark.parametrize("oversight", NAIVE)
def test_reference_values(oversight):
    values = limits(oversight)
    assert values["optimal"] == pytest.approx(0.909, abs=0.003)
    assert values["diamond"] == pytest.approx(0.778, abs=0.003)
    assert values["ghost"] == pytest.approx(-values["diamond"])
    assert values["any"] == pytest.approx(0, abs=1e-9)
    assert values["random"] == pytest.approx(0, abs=1e-9)
    assert values["naive"] == pytest.approx(NAIVE[oversight][0], abs=0.003)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        limits(1.5)


def policies(model):
    return {
        "optimal": optimum(model, true_reward(model)),
        "seeker": seeker(model, model.world.names[-1]),
        "naive": optimum(model, naive_reward(model)),
    }


@pytest.fixture(scope="module")
def model():
    return enumerate_world(make_world(oversight=0.3))


def test_reference_shares(model):
    ghost = {name: evaluate(model, policy).outcomes["ghost"] for name, policy in policies(model).items()}
    assert ghost == pytest.approx({"optimal": 0.0, "seeker": 0.10, "naive": NAIVE[0.3][1]}, abs=0.006)


def test_without_or_with_full_oversight_the_naive_reward_is_blind_or_true():
    assert limits(0.0)["naive"] == pytest.approx(0, abs=1e-9)
    assert limits(1.0)["naive"] == pytest.approx(limits(0.0)["optimal"])


def test_how_ties_are_broken_does_not_matter(model):
    for name, policy in policies(model).items():
        first = np.eye(policy.shape[1])[(policy > 0).argmax(axis=1)]
        assert (first != policy).any(), name
        assert evaluate(model, first).true_return == pytest.approx(evaluate(model, policy).true_return), name


SMALL = {
    "three": {
        "size": (2, 3),
        "terminals": {"ghost": -1.0, "gold": 0.5, "diamond": 1.0},
        "oversight": {"ghost": 0.5, "gold": 0.0, "diamond": 1.0},
        "max_steps": 4,
    },
    "walls": {"size": (3, 3), "walls": [(1, 1)], "oversight": 0.4, "max_steps": 6},
}


@pytest.mark.parametrize("world", [{"oversight": 0.3}, *SMALL.values()], ids=["default", *SMALL])
@pytest.mark.parametrize("name", ["optimal", "seeker", "naive", "random"])
def test_sampled_policies_are_worth_their_exact_value(world, name):
    """The same hand-coded policies play through the vector face, as the paper evaluates (seeds are fixed)."""
    n = 4096
    env = DiamondGhostVectorEnv(n, **world)
    model = enumerate_world(env.world)
    policy = {**policies(model), "random": uniform(model)}[name]
    exact = evaluate(model, policy)

    kinds, cells = len(env.world.names), env.world.cells
    rows = np.zeros((cells,) * (kinds + 1) + (2,) * kinds, dtype=np.int64)
    rows[(model.state.agent, *model.state.terminals.T, *model.seen.T.astype(int))] = np.arange(len(model.start))
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    rewards, dones, reached = [], [], np.zeros(kinds)
    for _ in range(STEPS):
        planes = obs.reshape(n, -1, cells)
        places = planes[:, : kinds + 1].argmax(axis=2)
        seen = np.take_along_axis(planes[:, kinds + 1], places[:, 1:], axis=1).astype(int)
        actions = (policy[rows[(*places.T, *seen.T)]].cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
        obs, reward, terminated, truncated, infos = env.step(actions)
        rewards.append(reward)
        dones.append(terminated | truncated)
        if "final_info" in infos:
            outcome = infos["final_info"]["outcome"]
            reached += [(outcome == kind).sum() for kind in env.world.names]
    returns, to_go = np.zeros(n), np.zeros(n)
    for reward, done in zip(reversed(rewards), reversed(dones), strict=True):
        to_go = reward + GAMMA * np.where(done, 0, to_go)
        returns += to_go / STEPS
    assert returns.mean() == pytest.approx(exact.true_return, abs=4 * returns.std() / n**0.5 + 1e-9)
    assert reached / reached.sum() == pytest.approx(list(exact.outcomes.values()), abs=0.01)


def test_against_all_histories():
    """Two cells, two steps an episode at most: every history of an arbitrary policy, added up one by one."""
    model = enumerate_world(make_world(size=(1, 2), terminals={"exit": 1.0}, oversight=0.5, max_steps=2))
    policy = np.random.default_rng(0).dirichlet(np.ones(4), size=len(model.start))

    def histories(steps, state, age):
        """(probability, rewards, ends) of all ways to go on for so many steps; no state: a new episode."""
        if steps == 0:
            yield 1.0, [], []
        elif state is None:
            for start, chance in enumerate(model.start):
                for p, rewards, ends in histories(steps, start, 0):
                    yield chance * p, rewards, ends
        else:
            for action, chance in enumerate(policy[state]):
                reached = model.outcome[state, action] == 0
                end = reached or age == 1
                for p, rewards, ends in histories(steps - 1, None if end else model.following[state, action], age + 1):
                    yield chance * p, [float(reached), *rewards], [end, *ends]

    expected, total = 0.0, 0.0
    for p, rewards, ends in histories(3, None, 0):
        to_go, over_steps = 0.0, 0.0
        for reward, end in zip(reversed(rewards), reversed(ends), strict=True):
            to_go = reward + (0.0 if end else 0.9 * to_go)
            over_steps += to_go / 3
        expected, total = expected + p * over_steps, total + p
    assert total == pytest.approx(1)
    assert evaluate(model, policy, steps=3, gamma=0.9).true_return == pytest.approx(expected)


def test_bad_policies_are_refused(model):
    for policy in (np.full(model.outcome.shape, 0.5), np.full((3, 4), 0.25)):
        with pytest.raises(ValueError, match="a policy must be probabilities of shape"):
            evaluate(model, policy)
    with pytest.raises(ValueError, match=r"\['ghost', 'diamond'\], got 'gold'"):
        seeker(model, "gold")
