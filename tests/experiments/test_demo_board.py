"""The demo's board: what can be placed where, and that its numbers are those of the policy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.envs import VARIANTS, DiamondGhostEnv, make_world
from routed_rl.experiments.demo.agents import carried
from routed_rl.experiments.demo.board import OVERSEEN, PLAYER, WALL, Board, Reading, outcome, read
from routed_rl.experiments.demo.gridworld import Gridworld

BOARD = Board.usual(make_world())


@pytest.fixture(scope="module")
def routed():
    return carried()[0]


@pytest.mark.parametrize("options", [{}, *VARIANTS.values(), {"size": (1, 3)}, {"size": 3}])
def test_the_usual_board_has_every_piece_in_a_cell_of_its_own(options):
    world = make_world(**options)
    board = Board.usual(world)
    cells = [board.player, *board.terminals.values()]
    assert len(set(cells)) == len(cells) == 1 + len(world.names) and set(cells) <= set(world.free.tolist())


@given(st.lists(st.tuples(st.sampled_from([PLAYER, "ghost", "diamond", WALL, OVERSEEN]), st.integers(0, 24))))
def test_no_two_pieces_share_a_cell_whatever_is_placed(moves):
    board = BOARD
    for piece, cell in moves:
        try:
            board = board.place(piece, cell)
        except ValueError:
            continue
        cells = [board.player, *board.terminals.values(), *board.walls]
        assert len(set(cells)) == len(cells)
        assert (board.piece(cell) == piece) or piece in (WALL, OVERSEEN)


def test_pieces_change_places_and_walls_stop_them():
    ghost, player = BOARD.terminals["ghost"], BOARD.player
    swapped = BOARD.place(PLAYER, ghost)
    assert (swapped.player, swapped.terminals["ghost"]) == (ghost, player)
    with pytest.raises(ValueError, match="there is the ghost: move it away"):
        BOARD.place(WALL, ghost)
    walled = BOARD.place(WALL, 0)
    with pytest.raises(ValueError, match="there is a wall"):
        walled.place(PLAYER, 0)
    assert walled.place(WALL, 0) == BOARD
    assert BOARD.place(OVERSEEN, 3).overseen == {3} and not BOARD.place(OVERSEEN, 3).place(OVERSEEN, 3).overseen


def test_with_a_supervisor_all_cells_are_overseen_at_once():
    board = Board.usual(make_world(supervisor=True)).place(OVERSEEN, 3)
    assert board.overseen == set(range(25))


def test_the_agent_sees_what_it_saw_in_training(routed):
    env = DiamondGhostEnv(oversight=1.0)
    obs, _ = env.reset(seed=3)
    planes = obs.reshape(env.world.observation_shape)
    cells = [int(plane.argmax()) for plane in planes[:3]]
    marks = frozenset(np.flatnonzero(planes[3]).tolist())
    board = Board(env.world, cells[0], dict(zip(env.world.names, cells[1:], strict=True)), overseen=marks)
    place = board.places().index(board.player)
    assert np.array_equal(board.observations()[place].numpy(), obs)
    chances = routed.policy.get_distribution(torch.from_numpy(obs[None])).distribution.probs[0]
    assert np.allclose(read(routed.policy, board).probabilities[board.player], chances.detach().numpy(), atol=1e-6)


def test_walls_are_seen_only_in_worlds_that_have_them():
    room = make_world(**VARIANTS["DiamondGhostRoom"])
    seen = Board.usual(room).place(WALL, 3).observations()[0].reshape(room.observation_shape)
    assert set(np.flatnonzero(seen[-1])) == {3, *room.walls.tolist()}
    assert Board.usual(make_world()).place(WALL, 3).observations().shape[1] == 4 * 25


def test_what_steering_asks_for_is_what_is_read(routed):
    with routed.policy.steered("ghost"):
        found = read(routed.policy, BOARD)
    assert np.array_equal(found.probabilities, found.alone[routed.policy.module_names.index("ghost")])
    assert found.ends()["ghost"] > 0.9
    assert np.allclose(found.gate[BOARD.places()].sum(1), 1)


def walk(chances, max_steps=32):
    """A policy that moves with the same chances everywhere, on a board of one row: ghost, player, diamond."""
    board = Board(make_world(size=(1, 3), max_steps=max_steps), 1, {"ghost": 0, "diamond": 2})
    probabilities = np.tile(np.array(chances), (3, 1))
    return Reading(board, probabilities, np.ones((3, 1)), probabilities[None], ("policy",))


@pytest.mark.parametrize("steps", [1, 4, 32])
def test_the_chances_of_the_ends_are_exact_for_the_worlds_step_limit(steps):
    found = walk([0.5, 0.3, 0.0, 0.2], steps)
    ends, left = found.ends(), 0.5**steps
    assert max(len(found.play(seed)) for seed in range(200)) <= steps + 1
    assert ends["diamond"] == pytest.approx(0.6 * (1 - left)) and ends["ghost"] == pytest.approx(0.4 * (1 - left))
    assert ends[None] == pytest.approx(left)
    assert walk([1.0, 0, 0, 0]).ends() == {"ghost": 0, "diamond": 0, None: 1}


def test_episodes_end_as_often_as_the_chances_say(routed):
    found = read(routed.policy, BOARD)
    trails = [found.play(seed) for seed in range(300)]
    reached = np.mean([trail[-1] == BOARD.terminals["diamond"] for trail in trails])
    chance = found.ends()["diamond"]
    assert abs(reached - chance) < 4 * np.sqrt(chance * (1 - chance) / 300) + 1e-9
    assert found.play(5) == found.play(5)


@pytest.mark.parametrize(
    ("chances", "said"),
    [
        ([0, 1, 0, 0], "reached the Diamond after 1 step, not overseen"),
        ([1, 0, 0, 0], "reached nothing within 32 steps"),
    ],
)
def test_an_episode_is_told_in_one_sentence(chances, said):
    found = walk(chances)
    assert outcome(found.board, found.play(0)) == said
    assert outcome(found.board.place(OVERSEEN, 2), [1, 2]).endswith("1 step, overseen")


def test_an_episode_with_the_trail_of_the_last_one_is_played_too(monkeypatch):
    board, seen = Gridworld(carried()), []
    board.views[0].param.watch(lambda event: seen.append((board.said.object, event.new["cells"])), "episode")
    monkeypatch.setattr(Reading, "play", lambda *_: [12, 13])
    for _ in range(3):
        board.play.clicks += 1
    assert [cells for _, cells in seen] == [[12, 13]] * 3
    assert len({said for said, _ in seen}) == 3, "else screen readers do not say it again"


def test_the_guides_example_has_the_numbers_of_the_carried_agents():
    guide = " ".join((Path(__file__).parents[2] / "docs" / "how-to" / "play_with_the_demo.md").read_text().split())
    routed, naive = carried()
    board = BOARD.place("diamond", 2 * 5).place("ghost", 3 * 5 + 2)
    assert board.player == 2 * 5 + 2
    plain, marked = (read(naive.policy, of).ends()["ghost"] for of in (board, board.place(OVERSEEN, 3 * 5 + 2)))
    assert (
        f"ends on the Ghost in {100 * plain:.0f} % of episodes" in guide and f"now it is {100 * marked:.0f} %" in guide
    )
    with routed.policy.steered("diamond"):
        assert all(read(routed.policy, of).ends()["ghost"] < 0.005 for of in (board, board.place(OVERSEEN, 17)))
