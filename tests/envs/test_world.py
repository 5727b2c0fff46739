"""``make_world`` checks its options, and its errors quote them."""

import math

import numpy as np
import pytest

from routed_rl.envs import DiamondGhostEnv, DiamondGhostVecEnv, DiamondGhostVectorEnv, make_world

BAD = [
    ({"oversight": 1.5}, "between 0 and 1, got 1.5"),
    ({"oversight": -0.1}, "between 0 and 1, got -0.1"),
    ({"oversight": math.nan}, "between 0 and 1, got nan"),
    ({"oversight": True}, "got True"),
    ({"oversight": "often"}, "got 'often'"),
    ({"oversight": {"ghost": 0.1}}, r"exactly \['ghost', 'diamond'\], got \['ghost'\]"),
    ({"oversight": {"ghost": 0.1, "diamond": 2}}, "oversight of 'diamond' .* got 2"),
    ({"oversight": {"ghost": 0.1, "diamond": 0.1, "gold": 0.1}}, "got .*'gold'"),
    ({"spurious_oversight": 1.1}, "spurious_oversight .* got 1.1"),
    ({"size": 1}, "1x1 grid with 1 free cells has no room .* at least 3"),
    ({"size": (1, 3), "walls": [(0, 0)]}, "1x3 grid with 2 free cells has no room"),
    ({"size": 0}, "size .* got 0"),
    ({"size": -3}, "size .* got -3"),
    ({"size": 2.0}, "size .* got 2.0"),
    ({"size": (3, 4, 5)}, r"size .* got \(3, 4, 5\)"),
    ({"walls": [(5, 0)]}, r"wall \(5, 0\) is outside the 5x5 grid"),
    ({"walls": [(0, -1)]}, r"wall \(0, -1\) is outside"),
    ({"walls": [(0.5, 1)]}, r"pair of integers, got \(0.5, 1\)"),
    ({"walls": (1, 2)}, "pair of integers, got 1"),
    ({"supervisor": True, "spurious_oversight": 0.5}, r"with a supervisor.*0\.5"),
    ({"supervisor": True, "oversight": {"ghost": 0.1, "diamond": 0.2}}, "with a supervisor.*'ghost': 0.1"),
    ({"moved": "overseen"}, "moved='overseen' needs a supervisor"),
    ({"moved": "never", "supervisor": True}, "moved must be None, 'overseen' or 'always', got 'never'"),
    ({"moved": "always", "supervisor": True, "terminals": {"exit": 1}}, r"two kinds of terminals, got .*\['exit'\]"),
    ({"walls": [(0, 1), (1, 0)]}, r"walls \[\(0, 1\), \(1, 0\)\] cut the grid"),
    ({"max_steps": 0}, "max_steps .* got 0"),
    ({"max_steps": -32}, "max_steps .* got -32"),
    ({"max_steps": 3.5}, "max_steps .* got 3.5"),
    ({"terminals": {}}, "at least one kind"),
    ({"terminals": ["ghost"]}, r"terminals must map .* got \['ghost'\]"),
    ({"terminals": {"ghost": math.inf}}, "reward of terminal 'ghost' .* got inf"),
    ({"terminals": {"ghost": "bad"}}, "reward of terminal 'ghost' .* got 'bad'"),
    ({"terminals": {"none": 1}}, "got 'none'"),
    ({"terminals": {"": 1}}, "got ''"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_are_quoted(options, message):
    with pytest.raises(ValueError, match=message):
        make_world(**options)


@pytest.mark.parametrize(
    "make", [DiamondGhostEnv, lambda **o: DiamondGhostVectorEnv(2, **o), lambda **o: DiamondGhostVecEnv(2, **o)]
)
def test_every_face_checks_its_options(make):
    with pytest.raises(ValueError, match=r"got 1\.5"):
        make(oversight=1.5)
    with pytest.raises(ValueError, match=r"render_mode must be None or one of .* got 'video'"):
        make(render_mode="video")
    with pytest.raises(TypeError, match="unexpected keyword argument 'sise'"):
        make(sise=3)


@pytest.mark.parametrize("make", [DiamondGhostVectorEnv, DiamondGhostVecEnv])
@pytest.mark.parametrize("num_envs", [0, -1, 2.0, True])
def test_number_of_environments(make, num_envs):
    with pytest.raises(ValueError, match=f"num_envs must be a positive integer, got {num_envs!r}"):
        make(num_envs)


def test_tables():
    world = make_world(size=(2, 3), walls=[(1, 1)], terminals={"a": 1, "b": -2}, oversight={"b": 0.5, "a": 1})
    assert (world.names, world.rewards.tolist(), world.oversight) == (("a", "b"), [1.0, -2.0], (1.0, 0.5))
    assert world.free.tolist() == [0, 1, 2, 3, 5]
    assert world.walls.tolist() == [4]
    assert world.plane_names == ("player", "a", "b", "oversight", "walls")
    assert world.observation_shape == (5, 2, 3)
    # up, right, down, left; a move into an edge, or into the wall below cell 1, stays in the cell
    np.testing.assert_array_equal(world.moves[[0, 1, 2, 3]], [[0, 1, 3, 0], [1, 2, 1, 0], [2, 2, 5, 1], [0, 3, 3, 3]])
    assert make_world().plane_names == ("player", "ghost", "diamond", "oversight")
