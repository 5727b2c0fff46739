"""The Diamond/Ghost world as pure functions over a batch of environments (numpy arrays or torch tensors).

Source: Cloud et al. 2024, sections 4.3 and F. Shapes: ``E`` environments, ``D`` selected environments, ``K`` terminal
kinds, ``C`` cells, ``P`` observation planes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import array_api_compat.numpy
import numpy as np

from routed_rl.envs.random import Array, below, bernoulli, bits, episode_stream, threshold
from routed_rl.envs.world import ACTIONS, World

SAVED: tuple[str, ...] = ("key", "episode", "steps", "agent")


class State(NamedTuple):
    """The state of E environments. (key, episode) determines ``terminals`` and ``oversight``."""

    key: Array  # (E,) int64: the environment's seed, wrapped to int64
    episode: Array  # (E,) int64: number of the episode, from 0
    steps: Array  # (E,) int64: steps taken in this episode
    agent: Array  # (E,) int64: the player's cell
    terminals: Array  # (E, K) int64: each terminal's cell
    oversight: Array  # (E, C) bool: the oversight plane


class Transition(NamedTuple):
    """The result of one step, before any reset."""

    outcome: Array  # (E,) int64: kind of the terminal reached, -1 for none
    overseen: Array  # (E,) bool: whether the terminal reached was overseen
    reward: Array  # (E,) float32: the true reward
    terminated: Array  # (E,) bool
    truncated: Array  # (E,) bool: the step limit was reached, but no terminal


Fields = TypeVar("Fields", bound=NamedTuple)
"""The state of any world: arrays (E, …)."""


class _Tables(NamedTuple):
    """A world's constants as arrays of one library (numpy or torch) on one device."""

    moves: Array  # (C * 4,) int64: next cell for 4 * cell + action
    rewards: Array  # (K + 1,) float32: reward by outcome; outcome -1 (none) indexes the zero at the end
    free: Array  # (F,) int64: cells without a wall
    places: Array  # (F,) int64, or (F - 1,) if one kind has a fixed cell: cells for objects with a random place
    walls: Array  # (W,) int64
    draws: Array  # (N,) int64: numbers of an episode's draws: K + 1 for places, K (or K + C) for oversight
    room: Array  # (K + 1,) int64, or (K,) if one kind is fixed: free cells left for each random object, player first
    limits: Array  # (N - K - 1,) int64: oversight probabilities, as thresholds of ``bernoulli``


@lru_cache(maxsize=64)
def _tables(world: World, xp: Any, device: Any) -> _Tables:
    kinds = len(world.names)
    limits = [threshold(p) for p in world.oversight]
    if world.spurious_oversight > 0:
        cells = np.zeros(world.cells, dtype=np.int64)
        cells[world.free] = threshold(world.spurious_oversight)
        limits += cells.tolist()
    fixed = 0 if world.moved is None else 1
    places = world.free[: len(world.free) - fixed]
    arrays = _Tables(
        moves=world.moves.ravel(),
        rewards=np.append(world.rewards, np.float32(0)),
        free=world.free,
        places=places,
        walls=world.walls,
        draws=np.arange(kinds + 1 + len(limits)),
        room=len(places) - np.arange(kinds + 1 - fixed),
        limits=np.array(limits),
    )
    return _Tables(*(xp.asarray(array, device=device) for array in arrays))


def _library(array: Array) -> tuple[Any, Any]:
    """Return the array library and the device of an array."""
    if isinstance(array, np.ndarray):  # the answer of array_api_compat, but faster
        return array_api_compat.numpy, "cpu"
    return array_api_compat.array_namespace(array), array_api_compat.device(array)


def reset(world: World, key: Array, episode: Array) -> State:
    """Return the first state of the given episodes; ``key`` and ``episode`` are (E,) int64."""
    xp, device = _library(key)
    table = _tables(world, xp, device)
    kinds = len(world.names)
    random = bits(episode_stream(key, episode)[:, None], table.draws)

    # Distinct uniform cells without a loop over environments. Each object draws a rank among the cells that earlier
    # objects left free. These ranks are a Lehmer code, decoded here from its end.
    rank = below(random[:, : len(table.room)], table.room)
    for i in reversed(range(len(table.room) - 1)):
        rank[:, i + 1 :] += rank[:, i + 1 :] >= rank[:, i : i + 1]
    cells = table.places[rank]
    agent, terminals = cells[:, 0], cells[:, 1:]

    overseen = bernoulli(random[:, kinds + 1 :], table.limits)
    if world.moved is not None:
        corner = xp.full_like(terminals[:, :1], world.free[-1])
        terminals = xp.concat([corner, terminals], axis=1)
        if world.moved == "overseen":
            terminals[:, -1] = xp.where(overseen[:, 0], terminals[:, -1], terminals[:, 0])
    if world.supervisor:
        oversight = xp.zeros((key.shape[0], world.cells), dtype=xp.bool, device=device)
        oversight[:, table.free] = overseen[:, :1]
        overseen = overseen[:, :1]
    elif world.spurious_oversight > 0:
        oversight = overseen[:, kinds:]
    else:
        oversight = xp.zeros((key.shape[0], world.cells), dtype=xp.bool, device=device)
    oversight[xp.arange(key.shape[0], device=device)[:, None], terminals] = overseen[:, :kinds]
    return State(key, episode, xp.zeros_like(key), agent, terminals, oversight)


def restore(world: World, saved: Mapping[str, np.ndarray]) -> State | None:
    """Return the state that saved arrays, of the right shapes, describe; None if this world has no such state."""
    steps, agent = saved["steps"].copy(), saved["agent"].copy()
    if not np.isin(agent, world.free).all() or not ((steps >= 0) & (steps <= world.max_steps)).all():
        return None
    return reset(world, saved["key"].copy(), saved["episode"].copy())._replace(steps=steps, agent=agent)


def saved_shape(name: str, num_envs: int) -> tuple[int, ...]:
    """Return the shape of an array of the saved state."""
    return (num_envs,)


def ended(world: World, state: State) -> np.ndarray:
    """Return (E,) bool: true where the episode has ended."""
    at_terminal = (state.terminals == state.agent[:, None]).any(axis=1)
    over: np.ndarray = at_terminal | (state.steps >= world.max_steps)
    return over


def spare_bits(world: World, key: Array, episode: Array) -> Array:
    """Return 63 random bits for each episode, (E,) int64, from a draw number that :func:`reset` never uses."""
    xp, device = _library(key)
    spare = 2 * len(world.names) + 1 + world.cells
    return bits(episode_stream(key, episode), xp.full((1,), spare, dtype=xp.int64, device=device))


def step(world: World, state: State, action: Array) -> tuple[State, Transition]:
    """Move every player; return the new state and the transition. It does not reset ended episodes.

    ``action`` is (E,) int64 in [0, 4).
    """
    xp, device = _library(state.agent)
    table = _tables(world, xp, device)
    agent = table.moves[state.agent * len(ACTIONS) + action]
    steps = state.steps + 1
    start = xp.arange(agent.shape[0], device=device) * world.cells  # one index is faster than two
    outcome = (state.terminals[:, 0] == agent) * 1
    for kind in range(1, len(world.names)):
        outcome = xp.where(state.terminals[:, kind] == agent, kind + 1, outcome)
    outcome -= 1
    terminated = outcome >= 0
    transition = Transition(
        outcome=outcome,
        overseen=terminated & xp.reshape(state.oversight, (-1,))[start + agent],
        reward=table.rewards[outcome],
        terminated=terminated,
        truncated=(steps >= world.max_steps) & ~terminated,
    )
    return state._replace(agent=agent, steps=steps), transition


def put(state: Fields, rows: Array, part: Fields) -> Fields:
    """Return the state with the environments with index ``rows`` (D,) replaced by ``part`` (D environments)."""
    xp, _ = _library(rows)
    merged = []
    for old, new in zip(state, part, strict=True):
        array = xp.asarray(old, copy=True)
        array[rows] = new
        merged.append(array)
    return type(state)(*merged)


def take(state: Fields, rows: Array) -> Fields:
    """Return the state of the environments with index ``rows`` (D,)."""
    return type(state)(*(array[rows] for array in state))


def observe(world: World, state: State) -> Array:
    """Return the observations, (E, P*C) float32: flattened binary planes (player, terminals, oversight, any walls)."""
    xp, device = _library(state.agent)
    count, kinds, cells = state.agent.shape[0], len(world.names), world.cells
    width = len(world.plane_names) * cells
    planes = xp.zeros((count, width), dtype=xp.float32, device=device)
    flat, start = xp.reshape(planes, (-1,)), xp.arange(count, device=device) * width  # one index is faster than two
    flat[start + state.agent] = 1.0
    for kind in range(kinds):
        flat[start + (kind + 1) * cells + state.terminals[:, kind]] = 1.0
    planes[:, (kinds + 1) * cells : (kinds + 2) * cells] = state.oversight
    if len(world.walls):
        planes[:, _tables(world, xp, device).walls + (kinds + 2) * cells] = 1.0
    return planes
