"""How episodes begin: distinct, uniformly drawn cells, and oversight with its probability. The seeds are fixed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from routed_rl.envs import dynamics, make_world
from routed_rl.envs.random import as_int64, below, bernoulli, bits, episode_stream, threshold
from tests.envs.worlds import WORLDS

# Seeds are fixed, so each statistic is one number. The bound is Wilson and Hilferty's approximation to
# the 1 - 1e-4 quantile of the chi-square distribution.
N = 40_000


def chi_square_bound(freedom):
    z, a = 3.719, 2 / (9 * freedom)
    return freedom * (1 - a + z * a**0.5) ** 3


def assert_uniform(counts):
    expected = counts.sum() / len(counts)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi_square_bound(len(counts) - 1)


def fresh(world, n=N, episode=0, key=0):
    return dynamics.reset(world, np.arange(key, key + n), np.full(n, episode))


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("across", ["environments", "episodes"])
def test_places_are_uniform_and_joint(name, across):
    world = WORLDS[name]
    state = fresh(world) if across == "environments" else dynamics.reset(world, np.zeros(N, np.int64), np.arange(N))
    places, free = np.column_stack([state.agent, state.terminals]), world.free
    if world.moved is not None:  # the first terminal is in the corner; so is the last, unless it was moved
        assert (state.terminals[:, 0] == free[-1]).all()
        moved = state.terminals[:, -1] != free[-1]
        assert (moved == (state.oversight.any(axis=1) if world.moved == "overseen" else True)).all()
        places, free = np.delete(places[moved], 1, axis=1), free[:-1]
    for column in places.T:
        counts = np.bincount(column, minlength=world.cells)
        assert counts[np.setdiff1d(np.arange(world.cells), free)].sum() == 0
        assert_uniform(counts[free])
    # every ordered pair of distinct cells is equally likely
    for i, j in itertools.combinations(range(places.shape[1]), 2):
        pairs = np.bincount(places[:, i] * world.cells + places[:, j], minlength=world.cells**2)
        possible = (free[:, None] * world.cells + free)[~np.eye(len(free), dtype=bool)]
        assert pairs.sum() == pairs[possible].sum()
        assert_uniform(pairs[possible])


@pytest.mark.parametrize("name", WORLDS)
def test_oversight_frequencies(name):
    world, state = WORLDS[name], fresh(WORLDS[name])
    rows = np.arange(N)
    for kind, p in enumerate(world.oversight):
        seen = state.oversight[rows, state.terminals[:, kind]]
        assert abs(seen.mean() - p) <= 4 * (p * (1 - p) / N) ** 0.5
    elsewhere = np.ones((N, world.cells), dtype=bool)
    elsewhere[:, world.walls] = False
    elsewhere[rows[:, None], state.terminals] = False
    if world.supervisor:  # all free cells of an episode have the same mark
        expected = np.broadcast_to(state.oversight[rows, state.agent][:, None], state.oversight.shape).copy()
        expected[:, world.walls] = False
        assert (state.oversight == expected).all()
        return
    p, spots = world.spurious_oversight, elsewhere.sum()
    assert abs(state.oversight[elsewhere].mean() - p) <= 4 * (p * (1 - p) / spots) ** 0.5
    assert not state.oversight[:, world.walls].any()


def test_oversight_of_kinds_is_independent():
    state = fresh(make_world(oversight=0.5))
    seen = np.take_along_axis(state.oversight, state.terminals, axis=1)
    assert_uniform(np.bincount(seen @ [2, 1], minlength=4))


@pytest.mark.parametrize(("p", "expected"), [(0.0, 0), (1.0, 1)])
def test_never_and_always_are_exact(p, expected):
    state = fresh(make_world(oversight=p, spurious_oversight=p))
    assert state.oversight.mean() == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(1, 6), width=st.integers(1, 6), kinds=st.integers(1, 5))
def test_any_world_places_its_objects_apart(data, height, width, kinds):
    cells = [(r, c) for r in range(height) for c in range(width)]
    walls = data.draw(st.lists(st.sampled_from(cells), max_size=len(cells) // 4, unique=True))
    try:
        world = make_world(
            size=(height, width), walls=walls, terminals={f"k{i}": i for i in range(kinds)}, oversight=0.5
        )
    except ValueError:
        reject()  # the grid has no room, or walls cut it in two
    state = fresh(world, 200, key=data.draw(st.integers(-(2**62), 2**62)), episode=data.draw(st.integers(0, 2**40)))
    places = np.column_stack([state.agent, state.terminals])
    assert np.isin(places, world.free).all()
    assert (np.diff(np.sort(places, axis=1)) > 0).all()
    allowed = np.zeros_like(state.oversight)
    allowed[np.arange(200)[:, None], state.terminals] = True
    assert not (state.oversight & ~allowed).any()


def test_seeds_and_episodes_differ():
    """With the next seed, the next episode, or both, all draws differ: these episodes are unrelated."""
    key, episode = np.meshgrid(np.arange(-300, 300), np.arange(300), indexing="ij")
    draws = bits(episode_stream(key.ravel(), episode.ravel())[:, None], np.arange(4))
    assert draws.min() >= 0
    assert len(np.unique(draws)) == draws.size


def test_draws_are_what_they_say():
    random = np.array([0, 2**63 - 1])
    assert below(random, np.array(7)).tolist() == [0, 6]
    assert bernoulli(random, np.array(threshold(0.0))).tolist() == [False, False]
    assert bernoulli(random, np.array(threshold(1.0))).tolist() == [True, True]
    assert [as_int64(x) for x in (5, -1, 2**63, 2**64 + 3)] == [5, -1, -(2**63), 3]


@pytest.mark.parametrize("name", WORLDS)
def test_spare_bits_are_a_draw_of_their_own(name):
    world, keys, episodes = WORLDS[name], np.arange(N), np.full(N, 3)
    spare = dynamics.spare_bits(world, keys, episodes)
    assert_uniform(np.bincount(below(spare, np.array(4)), minlength=4))
    taken = bits(episode_stream(keys, episodes)[:1000, None], dynamics._tables(world, np, "cpu").draws)
    assert not (taken == spare[:1000, None]).any()
    tensors = dynamics.spare_bits(world, torch.from_numpy(keys), torch.from_numpy(episodes))
    np.testing.assert_array_equal(spare, tensors.numpy())
