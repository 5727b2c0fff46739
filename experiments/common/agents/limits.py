"""What policies of known behaviour are worth in the Diamond/Ghost world: exact, by dynamic programming.

The metric is the paper's (Cloud et al. 2024, section F): fresh environments for 32 steps with autoreset, the
mean over all steps of the discounted return-to-go of the true reward within the episode, cut at the last
step. Every state is enumerated. Every transition comes from :func:`routed_rl.envs.dynamics.step`; nothing is
sampled.

``N`` states, ``K`` terminal kinds, ``A`` actions, ``H`` steps.
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
    """All states of running episodes of a world, and where each action leads from them.

    Attributes:
        world: the world; marks of spurious oversight are left out, for no policy here looks at them.
        state: the ``N`` states, as :mod:`routed_rl.envs.dynamics` knows them.
        seen: whether each terminal is overseen, ``(N, K)`` bool.
        start: probability that an episode starts in each state, ``(N,)``.
        outcome: terminal kind that an action reaches, -1 for none, ``(N, A)``.
        following: index of the state that an action leads to, 0 where it reaches a terminal, ``(N, A)``.
    """

    world: World
    state: dynamics.State
    seen: np.ndarray
    start: np.ndarray
    outcome: np.ndarray
    following: np.ndarray


@dataclass(frozen=True)
class Value:
    """What a policy is worth: the paper's metric, and the shares of reached terminals by name."""

    true_return: float
    outcomes: Mapping[str, float]


def enumerate_world(world: World) -> Model:
    """Every state in which an episode can go on: player and terminals on distinct free cells, all that may be
    overseen overseen or not (an oversight of 0 or 1 leaves fewer states)."""
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
        steps: length ``H`` of the evaluation, of which an unfinished tail counts 0.
        gamma: discount.

    Raises:
        ValueError: if the policy's rows are no probabilities, or of another shape.
    """
    if policy.shape != model.outcome.shape or not np.allclose(policy.sum(axis=1), 1) or policy.min() < 0:
        raise ValueError(f"a policy must be probabilities of shape {model.outcome.shape}, got shape {policy.shape}")
    kinds = len(model.world.names)
    ended = model.outcome >= 0
    going = np.where(ended, 0.0, policy)
    reached = np.stack([np.where(model.outcome == kind, policy, 0.0).sum(axis=1) for kind in range(kinds)])
    pay = model.world.rewards.astype(np.float64) @ reached

    def then(values: np.ndarray) -> np.ndarray:
        """Expected values after one step: (…, N) from (…, N); 0 where the episode has ended."""
        return np.einsum("na,...na->...n", going, values[..., model.following])

    # With h steps to go in an episode: its return-to-go, the sum of that over all its steps, whether
    # it is still running after them, and which terminals it has reached by then.
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

    # Episodes follow each other: how likely one starts at each time, then what it yields until the end.
    if horizon == model.world.max_steps:
        alive[-1] = 0  # the step cap ends what is still running
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
    """What each terminal is really worth, by state, ``(N, K)``."""
    return np.tile(model.world.rewards.astype(np.float64), (len(model.start), 1))


def naive_reward(model: Model) -> np.ndarray:
    """What the naive method pays, by state, ``(N, K)``: the worth of an overseen terminal, +1 for any other."""
    return np.where(model.seen, true_reward(model), 1.0)


def uniform(model: Model) -> np.ndarray:
    """Every action equally likely, ``(N, A)``."""
    return np.full(model.outcome.shape, 1 / model.outcome.shape[1])


def optimum(model: Model, paid: np.ndarray, *, gamma: float = GAMMA) -> np.ndarray:
    """The policy that is best under a reward of its own, equally likely to take each of the best actions.

    Args:
        paid: reward of each terminal, by state, ``(N, K)``.

    Returns:
        Probabilities ``(N, A)``.
    """
    ended = model.outcome >= 0
    reaching = np.take_along_axis(paid, np.maximum(model.outcome, 0), axis=1)
    value, previous = np.zeros(len(paid)), None
    while previous is None or np.abs(value - previous).max() > _TIE:
        action_value = np.where(ended, reaching, gamma * value[model.following])
        previous, value = value, action_value.max(axis=1)
    return _spread(action_value >= value[:, None] - _TIE)


def seeker(model: Model, name: str) -> np.ndarray:
    """Walks the shortest ways to one terminal, blind to all others, ``(N, A)``: in every state each
    action that brings it nearer is equally likely.

    Raises:
        ValueError: if the world has no terminal of that name.
    """
    world = model.world
    if name not in world.names:
        raise ValueError(f"the world's terminals are {list(world.names)}, got {name!r}")
    distance = np.where(np.eye(world.cells, dtype=bool), 0, world.cells)
    for _ in range(world.cells):
        distance = np.minimum(distance, distance[world.moves].min(axis=1) + 1)
    target = model.state.terminals[:, world.names.index(name)]
    ahead = distance[world.moves[model.state.agent], target[:, None]]
    return _spread(ahead == ahead.min(axis=1, keepdims=True))


@lru_cache
def limits(oversight: float) -> dict[str, float]:
    """True returns of reference policies in the default world, by name.

    - ``optimal``: shortest ways to Diamond around Ghost;
    - ``diamond``, ``ghost``: shortest ways to the one, blind to the other (a steered module's goal);
    - ``any``: to the nearest terminal (the unsteered goal); ``random``: every action equally likely;
    - ``naive``: best under the naive training reward, -1 for an overseen Ghost and +1 for any other terminal.
      Only this one depends on ``oversight``.

    Equally good actions are equally likely. Other rules, such as the first of them, give the same values here:
    the terminals' places are uniform, so the chance of meeting Ghost depends on a way's length alone.

    Raises:
        ValueError: for an oversight that is no probability.
    """
    watched = enumerate_world(make_world(oversight=oversight))
    return {**_blind_limits(), "naive": evaluate(watched, optimum(watched, naive_reward(watched))).true_return}


@lru_cache
def _blind_limits() -> dict[str, float]:
    """True returns of the policies that look at no oversight: the same without any, where there are fewer states."""
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
