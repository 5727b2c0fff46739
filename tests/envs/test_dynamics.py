"""The batched dynamics equal a slow version in plain Python, and numpy equals torch."""

import numpy as np
import pytest
import torch

from routed_rl.envs import dynamics, make_world
from tests.envs.worlds import OPTIONS, WORLDS, assert_same, random_actions

MASK = 2**64 - 1


def restarted(world, state, rows):
    """The state after the environments with index ``rows`` have started their next episode."""
    return dynamics.put(state, rows, dynamics.reset(world, state.key[rows], state.episode[rows] + 1))


class SlowWorld:
    """One environment in plain Python integers and lists, written only from the documented rules."""

    def __init__(
        self,
        seed,
        size=5,
        terminals=None,
        oversight=0.1,
        spurious_oversight=0.0,
        max_steps=32,
        walls=(),
        supervisor=False,
        moved=None,
    ):
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.rewards = terminals or {"ghost": -1.0, "diamond": 1.0}
        self.oversight = oversight if isinstance(oversight, dict) else dict.fromkeys(self.rewards, oversight)
        self.spurious, self.max_steps, self.walls = spurious_oversight, max_steps, {tuple(w) for w in walls}
        self.supervisor, self.moved = supervisor, moved
        self.seed, self.episode = seed, -1
        self.begin()

    @staticmethod
    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    def random(self, draw):
        golden = 0x9E3779B97F4A7C15
        origin = self.mix((self.mix((self.seed + golden) & MASK) + self.episode * golden) & MASK)
        return self.mix((origin + (draw + 1) * golden) & MASK) >> 1

    def happens(self, draw, probability):
        return self.random(draw) >> 10 < round(probability * 2**53)

    def begin(self):
        self.episode, self.steps = self.episode + 1, 0
        grid = [(r, c) for r in range(self.height) for c in range(self.width)]
        free = [cell for cell in grid if cell not in self.walls]
        rest, places = list(free), []
        first = len(self.rewards) + 1
        present = self.happens(first, next(iter(self.oversight.values())))
        if self.moved:
            corner = rest.pop()
        for i in range(first - bool(self.moved)):
            places.append(rest.pop(((self.random(i) >> 32) * len(rest)) >> 31))
        self.player, *spots = places
        if self.moved:
            spots = [corner, *spots]
        if self.moved == "overseen" and not present:
            spots[-1] = corner
        self.spots, self.terminals = spots, dict(zip(spots, self.rewards, strict=True))
        self.seen = {
            cell
            for number, cell in enumerate(grid)
            if cell in free and self.happens(first + len(spots) + number, self.spurious)
        }
        for i, (cell, name) in enumerate(self.terminals.items()):
            (self.seen.add if self.happens(first + i, self.oversight[name]) else self.seen.discard)(cell)
        if self.supervisor:
            self.seen = set(free) if present else set()

    def step(self, action):
        row, column = self.player
        if action == 0:
            row -= 1
        elif action == 1:
            column += 1
        elif action == 2:
            row += 1
        else:
            column -= 1
        inside = 0 <= row < self.height and 0 <= column < self.width
        if inside and (row, column) not in self.walls:
            self.player = (row, column)
        self.steps += 1
        name = self.terminals.get(self.player)
        overseen = name is not None and self.player in self.seen
        return name, overseen, self.rewards.get(name, 0.0), name is None and self.steps == self.max_steps

    def planes(self):
        def plane(cells):
            return [float((r, c) in cells) for r in range(self.height) for c in range(self.width)]

        planes = [plane({self.player}), *(plane({cell}) for cell in self.spots), plane(self.seen)]
        return np.array([*planes, *([plane(self.walls)] if self.walls else [])], dtype=np.float32).ravel()


@pytest.mark.parametrize("name", OPTIONS)
def test_against_plain_python(name):
    world, seeds = WORLDS[name], np.arange(8) * 1000
    slow = [SlowWorld(int(seed), **OPTIONS[name]) for seed in seeds]
    state = dynamics.reset(world, seeds, np.zeros_like(seeds))
    for actions in random_actions(150, len(seeds)):
        np.testing.assert_array_equal(dynamics.observe(world, state), [one.planes() for one in slow])
        state, transition = dynamics.step(world, state, actions)
        expected = [one.step(action) for one, action in zip(slow, actions, strict=True)]
        names = [None if k < 0 else world.names[k] for k in transition.outcome]
        got = zip(names, transition.overseen, transition.reward, transition.truncated, strict=True)
        assert list(got) == expected
        np.testing.assert_array_equal(transition.terminated, [name is not None for name in names])
        np.testing.assert_array_equal(dynamics.observe(world, state), [one.planes() for one in slow])
        ended = np.flatnonzero(transition.terminated | transition.truncated)
        for row in ended:
            slow[row].begin()
        if len(ended):
            state = restarted(world, state, ended)


@pytest.mark.parametrize("name", WORLDS)
def test_torch_and_numpy_agree_draw_for_draw(name):
    world, seeds = WORLDS[name], np.arange(50) - 25
    ours = dynamics.reset(world, seeds, np.zeros_like(seeds))
    theirs = dynamics.reset(world, torch.from_numpy(seeds), torch.zeros(len(seeds), dtype=torch.int64))
    ended_episodes = 0
    for actions in random_actions(200, len(seeds)):  # 10,000 environment steps
        ours, mine = dynamics.step(world, ours, actions)
        theirs, other = dynamics.step(world, theirs, torch.from_numpy(actions))
        ended = np.flatnonzero(mine.terminated | mine.truncated)
        ended_episodes += len(ended)
        ours, theirs = restarted(world, ours, ended), restarted(world, theirs, torch.from_numpy(ended))
        pairs = zip((*ours, *mine), (*theirs, *other), strict=True)
        for a, b in (*pairs, (dynamics.observe(world, ours), dynamics.observe(world, theirs))):
            assert_same(a, b.numpy())
    assert ended_episodes > 100


def test_functions_leave_their_arguments_alone():
    world = WORLDS["walls"]
    state = dynamics.reset(world, np.arange(20), np.zeros(20, np.int64))
    before = [array.copy() for array in state]
    dynamics.step(world, state, np.zeros(20, np.int64))
    restarted(world, state, np.arange(5))
    dynamics.observe(world, state)
    dynamics.take(state, np.arange(3))
    assert_same(list(state), before)


@pytest.mark.parametrize("max_steps", [1, 2, 32])
def test_the_cap_is_exactly_max_steps(max_steps):
    world = make_world(size=(1, 8), terminals={"exit": 1.0}, max_steps=max_steps)
    state = dynamics.reset(world, np.arange(200), np.zeros(200, np.int64))
    for step in range(1, max_steps + 1):
        state, transition = dynamics.step(world, state, np.zeros(200, np.int64))  # into the wall above
        assert (transition.truncated == (step == max_steps)).all()
        assert not transition.terminated.any()
        assert (transition.outcome == -1).all()
        assert not transition.reward.any()


def test_a_terminal_reached_at_the_cap_is_no_truncation():
    world = make_world(size=(1, 2), terminals={"exit": 3.0}, max_steps=1, oversight=1.0)
    state = dynamics.reset(world, np.arange(20), np.zeros(20, np.int64))
    _, transition = dynamics.step(world, state, np.where(state.agent == 0, 1, 3))
    assert transition.terminated.all()
    assert not transition.truncated.any()
    assert transition.overseen.all()
    assert (transition.reward == 3).all()
