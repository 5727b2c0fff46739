"""``Batch``: autoreset, ends of episodes, exact saving of its state, and rejected inputs."""

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from routed_rl.envs import dynamics, make_world
from routed_rl.envs.batch import Batch
from tests.envs.worlds import WORLDS, assert_same, random_actions

RNG = np.random.default_rng(0)


def started(world, n, *, autoreset=True, seed=0):
    batch = Batch(world, n, autoreset=autoreset)
    batch.reset(range(seed, seed + n), RNG)
    return batch


@pytest.mark.parametrize("name", WORLDS)
def test_same_step_autoreset(name):
    """When an episode ends, the step returns the next one's first observation; the last one is in the ends."""
    world = WORLDS[name]
    batch, ended_episodes = started(world, 30), 0
    for actions in random_actions(60, 30):
        before = batch.state
        obs, transition, ends = batch.step(actions)
        moved, _ = dynamics.step(world, before, actions)
        ended = transition.terminated | transition.truncated
        assert_same(ends.rows, np.flatnonzero(ended))
        assert_same(ends.final_obs, dynamics.observe(world, moved)[ended])
        assert_same(ends.length, moved.steps[ended])
        for field in ("outcome", "overseen", "truncated", "reward"):
            assert_same(getattr(ends, field), getattr(transition, field)[ended])
        assert_same(obs[~ended], dynamics.observe(world, moved)[~ended])
        first = dynamics.reset(world, before.key, before.episode + 1)
        assert_same(obs[ended], dynamics.observe(world, first)[ended])
        assert not batch.state.steps[ended].any()
        ended_episodes += len(ends.rows)
    assert ended_episodes > 30


@pytest.mark.parametrize("name", WORLDS)
def test_get_state_continues_exactly(name):
    actions = random_actions(80, 9)
    batch = started(WORLDS[name], 9, seed=2**64 - 5)  # a seed beyond int64 wraps
    for action in actions[:40]:
        batch.step(action)
    saved = batch.get_state()
    assert {k: (v.dtype, v.shape) for k, v in saved.items()} == dict.fromkeys(
        ("key", "episode", "steps", "agent"), (np.dtype(np.int64), (9,))
    )
    other = Batch(WORLDS[name], 9)
    other.set_state(saved)
    for array in saved.values():
        array[:] = 0  # neither batch may keep a reference to the array
    for action in actions[40:]:
        assert_same(tuple(batch.step(action)), tuple(other.step(action)))
    assert_same(batch.get_state(), other.get_state())


def test_reset_goes_on_to_the_next_episode_where_there_is_no_seed():
    batch = started(WORLDS["default"], 4)
    first = batch.reset([7, None, None, 7], RNG)
    assert batch.state.episode.tolist() == [0, 1, 1, 0]
    assert batch.state.key.tolist() == [7, 1, 2, 7]
    assert_same(first[0], first[3])
    again = batch.reset([None, 2, None, None], RNG, np.array([False, True, False, True]))
    assert batch.state.episode.tolist() == [0, 0, 1, 1]
    assert_same(again[[0, 2]], first[[0, 2]])


def test_a_masked_reset_leaves_the_others_where_they_are():
    batch = started(make_world(max_steps=100), 6)
    for actions in random_actions(5, 6):
        batch.step(actions)
    before, mask = batch.get_state(), np.array([True, False] * 3)
    batch.reset([None] * 6, RNG, mask)
    for name, array in batch.get_state().items():
        assert_same(array[~mask], before[name][~mask])
    assert not batch.state.steps[mask].any()


def test_the_first_reset_without_seeds_draws_them():
    keys = []
    for seed in (1, 1, 2):
        batch = Batch(WORLDS["default"], 3)
        batch.reset([None] * 3, np.random.default_rng(seed))
        keys.append(batch.state.key.tolist())
    assert keys[0] == keys[1]
    assert len({*keys[0], *keys[2]}) == 6


def test_needs_a_reset():
    batch = Batch(WORLDS["default"], 2)
    for use in (lambda: batch.step([0, 0]), batch.get_state, lambda: batch.state):
        with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
            use()
    with pytest.raises(ResetNeeded, match="every environment"):
        batch.reset([0, 0], RNG, np.array([True, False]))


def test_without_autoreset_it_stops_at_the_end():
    batch = started(make_world(max_steps=3), 1, autoreset=False)
    batch.set_state({**batch.get_state(), "steps": np.array([2])})
    obs, transition, ends = batch.step([0])
    assert transition.terminated[0] or transition.truncated[0]
    assert_same(obs, ends.final_obs)
    with pytest.raises(ResetNeeded, match="the episode has ended"):
        batch.step([0])
    other = Batch(batch.world, 1, autoreset=False)
    other.set_state(batch.get_state())
    with pytest.raises(ResetNeeded, match="the episode has ended"):
        other.step([0])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 4, 1], "0 to 3, got 4 for environment 1"),
        ([0, 1, -1], "0 to 3, got -1 for environment 2"),
        ([0, 1], r"3 integers, one for each environment, got int64 of shape \(2,\)"),
        ([[0, 1, 2]], r"shape \(1, 3\)"),
        ([0.0, 1.0, 2.0], "got float64"),
        ([True, False, True], "got bool"),
        (np.array([2**63, 0, 0], dtype=np.uint64), "for environment 0"),
    ],
)
def test_bad_actions_are_quoted(actions, message):
    batch = started(WORLDS["default"], 3)
    before = batch.get_state()
    with pytest.raises(ValueError, match=message):
        batch.step(actions)
    assert_same(batch.get_state(), before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_any_integers_are_actions(dtype):
    one, other = started(WORLDS["default"], 3), started(WORLDS["default"], 3)
    assert_same(tuple(one.step(np.array([3, 2, 1], dtype=dtype))), tuple(other.step([3, 2, 1])))


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([0, 1], "one seed for each of 3 environments, got 2"),
        ([0, 1.5, 2], "got 1.5"),
        ([0, 1, "2"], "got '2'"),
        ([0, -1, 2], "got -1"),
        ([0, True, 2], "got True"),
    ],
)
def test_bad_seeds_are_quoted(seeds, message):
    with pytest.raises(ValueError, match=message):
        Batch(WORLDS["default"], 3).reset(seeds, RNG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agent": None}, "must hold key, episode, steps, agent, got key, episode, steps"),
        ({"agent": np.zeros(2, np.int64)}, r"'agent' must be int64 of shape \(3,\), got int64 of shape \(2,\)"),
        ({"key": np.zeros(3)}, "'key' must be int64 .* got float64"),
        ({"agent": np.array([0, 25, 0])}, "of another world"),
        ({"steps": np.array([0, 33, 0])}, "of another world"),
    ],
)
def test_a_foreign_state_is_refused(change, message):
    batch = started(WORLDS["default"], 3)
    before = batch.get_state()
    saved = {name: array for name, array in {**before, **change}.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        batch.set_state(saved)
    assert_same(batch.get_state(), before)
