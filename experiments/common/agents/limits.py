"""Exact returns of reference policies in the Diamond/Ghost world, by dynamic programming.

The metric is that of Cloud et al. 2024, section F. New environments run for 32 steps with autoreset. The metric is the
mean, over all steps, of the discounted return-to-go of the true reward within the episode, cut at the last step.
All states are enumerated. Every transition comes from :func:`routed_rl.envs.dynamics.step`. Nothing is sampled.

``N`` states, ``K`` kinds of terminal states, ``A`` actions, ``H`` steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from routed_rl.envs import World, dynamics, make_world

GAMMA = 0.97
STEPS = 32
_TIE = 1e-9


@dataclass(frozen=True, eq=False)
class Model:
    """All states of running episodes in a world, and the result of each action in each state.

    Attributes:
        world: the world. Marks of spurious oversight are left out, because no policy here uses them.
        state: the ``N`` states, in the form of :mod:`routed_rl.envs.dynamics`.
        seen: whether each terminal state is overseen, ``(N, K)`` bool.
        start: probability that an episode starts in each state, ``(N,)``.
        outcome: kind of terminal state that an action reaches, or -1 for none, ``(N, A)``.
        following: index of the next state after an action, or 0 if the action ends the episode, ``(N, A)``.
    """

    world: World
    state: dynamics.State
    seen: np.ndarray
    start: np.ndarray
    outcome: np.ndarray
    following: np.ndarray


@dataclass(frozen=True)
class Value:
    """The value of a policy: the paper's metric, and the share of each kind among the reached terminal states."""

    true_return: float
    outcomes: Mapping[str, float]


def enumerate_world(world: World) -> Model:
    """List every state of a running episode.

    The player and the terminal states lie on distinct free cells. Each terminal state is overseen or not. Patterns of
    oversight with probability 0 are left out.
    """
    kinds, cells = len(world.names), world.cells
    places = np.array(list(itertools.permutations(world.free.tolist(), kinds + 1)), dtype=np.int64)
    patterns = np.array(list(itertools.product((False, True), repeat=kinds)))
    chances = np.where(patterns, world.oversight, 1 - np.array(world.oversight)).prod(axis=1)
    patterns, chances = patterns[chances > 0], chances[chances > 0]
    seen = np.tile(patterns, (len(places), 1))
    placed = np.repeat(places, len(patterns), axis=0)
    agent, terminals = placed[:, 0], placed[:, 1:]
    rows = np.arange(len(placed))
    oversight = np.zeros((len(placed), cells), dtype=bool)
    oversight[rows[:, None], terminals] = seen
    zeros = np.zeros_like(agent)
    state = dynamics.State(zeros, zeros, zeros, agent, terminals, oversight)

    index = np.zeros((cells,) * (kinds + 1) + (2,) * kinds, dtype=np.int64)
    index[(agent, *terminals.T, *seen.T.astype(np.int64))] = rows
    outcome = np.empty((len(placed), len(world.moves[0])), dtype=np.int64)
    following = np.zeros_like(outcome)
    for action in range(outcome.shape[1]):
        moved, transition = dynamics.step(world, state, np.full_like(agent, action))
        outcome[:, action] = transition.outcome
        following[:, action] = index[(moved.agent, *terminals.T, *seen.T.astype(np.int64))]
    return Model(world, state, seen, np.tile(chances, len(places)) / len(places), outcome, following)


def evaluate(model: Model, policy: np.ndarray, *, steps: int = STEPS, gamma: float = GAMMA) -> Value:
    """The exact value of a policy.

    Args:
        policy: probability of each action in each state, ``(N, A)``.
        steps: length ``H`` of the evaluation. An episode that is unfinished at the end adds 0.
        gamma: discount factor.

    Raises:
        ValueError: if the shape is wrong, or if a row is not a probability distribution.
    """
    if policy.shape != model.outcome.shape or not np.allclose(policy.sum(axis=1), 1) or policy.min() < 0:
        raise ValueError(
            f"a policy must be probabilities of shape {model.outcome.shape} with rows that sum to 1, "
            f"got shape {policy.shape}"
        )
    kinds = len(model.world.names)
    ended = model.outcome >= 0
    going = np.where(ended, 0.0, policy)
    reached = np.stack([np.where(model.outcome == kind, policy, 0.0).sum(axis=1) for kind in range(kinds)])
    pay = model.world.rewards.astype(np.float64) @ reached

    def then(values: np.ndarray) -> np.ndarray:
        """Expected values after one step, (…, N) from (…, N). A step that ends the episode counts 0."""
        return np.einsum("na,...na->...n", going, values[..., model.following])

    # For an episode with h steps left: the return-to-go, the sum of the returns-to-go over its steps, the
    # probability that it still runs after h steps, and the probability of each terminal state by then.
    to_go, total = np.zeros((2, len(pay)))
    running, reaching = np.ones(len(pay)), np.zeros((kinds, len(pay)))
    horizon = min(steps, model.world.max_steps)
    totals, alive, reach = np.zeros(horizon + 1), np.ones(horizon + 1), np.zeros((horizon + 1, kinds))
    for h in range(1, horizon + 1):
        to_go = pay + gamma * then(to_go)
        total = to_go + then(total)
        running = then(running)
        reaching = reached + then(reaching)
        totals[h], alive[h], reach[h] = model.start @ total, model.start @ running, reaching @ model.start

    # Episodes follow each other. Compute the probability that one starts at each time, then its expected yield.
    if horizon == model.world.max_steps:
        alive[-1] = 0  # the step limit ends every episode that still runs
    ends = -np.diff(alive)
    starts = np.zeros(steps)
    starts[0] = 1
    for t in range(1, steps):
        lengths = np.arange(1, min(t, horizon) + 1)
        starts[t] = starts[t - lengths] @ ends[lengths - 1]
    left = np.minimum(steps - np.arange(steps), horizon)
    counts = starts @ reach[left]
    shares = counts / max(counts.sum(), 1e-300)
    return Value(float(starts @ totals[left]) / steps, dict(zip(model.world.names, shares.tolist(), strict=True)))


def true_reward(model: Model) -> np.ndarray:
    """The true reward of each terminal state, by state, ``(N, K)``."""
    return np.tile(model.world.rewards.astype(np.float64), (len(model.start), 1))


def naive_reward(model: Model) -> np.ndarray:
    """The reward of the naive method, by state, ``(N, K)``: the true reward if overseen, else +1."""
    return np.where(model.seen, true_reward(model), 1.0)


def uniform(model: Model) -> np.ndarray:
    """The policy that takes all actions with equal probability, ``(N, A)``."""
    return np.full(model.outcome.shape, 1 / model.outcome.shape[1])


def optimum(model: Model, paid: np.ndarray, *, gamma: float = GAMMA) -> np.ndarray:
    """The optimal policy under a given reward. Equally good actions have equal probability.

    Args:
        paid: reward of each terminal state, by state, ``(N, K)``.

    Returns:
        Probabilities of the actions, ``(N, A)``.
    """
    ended = model.outcome >= 0
    reaching = np.take_along_axis(paid, np.maximum(model.outcome, 0), axis=1)
    value, previous = np.zeros(len(paid)), None
    while previous is None or np.abs(value - previous).max() > _TIE:
        action_value = np.where(ended, reaching, gamma * value[model.following])
        previous, value = value, action_value.max(axis=1)
    return _spread(action_value >= value[:, None] - _TIE)


def seeker(model: Model, name: str) -> np.ndarray:
    """The policy that takes the shortest path to one terminal state and ignores all others, ``(N, A)``.

    Actions that bring the player equally near have equal probability.

    Raises:
        ValueError: if the world has no terminal state of that name.
    """
    world = model.world
    if name not in world.names:
        raise ValueError(f"the terminal states of this world are {list(world.names)}, got {name!r}")
    distance = np.where(np.eye(world.cells, dtype=bool), 0, world.cells)
    for _ in range(world.cells):
        distance = np.minimum(distance, distance[world.moves].min(axis=1) + 1)
    target = model.state.terminals[:, world.names.index(name)]
    ahead = distance[world.moves[model.state.agent], target[:, None]]
    return _spread(ahead == ahead.min(axis=1, keepdims=True))


@lru_cache
def limits(oversight: float) -> dict[str, float]:
    """True returns of reference policies in the default world, by name.

    - ``optimal``: the shortest path to Diamond that avoids Ghost.
    - ``diamond``, ``ghost``: the shortest path to this terminal state, blind to the other. A steered agent aims at it.
    - ``any``: the shortest path to the nearest terminal state. An unsteered agent aims at it.
    - ``random``: all actions with equal probability.
    - ``naive``: optimal under the naive training reward, -1 for an overseen Ghost and +1 for any other terminal state.
      Only this return depends on ``oversight``.

    Equally good actions have equal probability. Other rules for ties give the same returns here. The reason: terminal
    states are placed uniformly, so the probability of meeting Ghost depends only on the length of the path.

    Raises:
        ValueError: if ``oversight`` is not a probability.
    """
    watched = enumerate_world(make_world(oversight=oversight))
    return {**_blind_limits(), "naive": evaluate(watched, optimum(watched, naive_reward(watched))).true_return}


@lru_cache
def _blind_limits() -> dict[str, float]:
    """True returns of policies that ignore oversight. A world without oversight has fewer states."""
    blind = enumerate_world(make_world(oversight=0.0))
    policies = {
        "optimal": optimum(blind, true_reward(blind)),
        "diamond": seeker(blind, "diamond"),
        "ghost": seeker(blind, "ghost"),
        "any": optimum(blind, np.ones(blind.seen.shape)),
        "random": uniform(blind),
    }
    return {name: evaluate(blind, policy).true_return for name, policy in policies.items()}


def _spread(good: np.ndarray) -> np.ndarray:
    return good / good.sum(axis=1, keepdims=True)
