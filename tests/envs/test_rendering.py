"""Rendered images and text show all objects, and which cells are overseen."""

import sys

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

from routed_rl.envs import DiamondGhostEnv, DiamondGhostVectorEnv, dynamics, make_world
from routed_rl.envs.rendering import FLOOR, FRAME, LIT, WALL, ansi, letters, rgb

WORLD = make_world(size=(2, 4), walls=[(0, 3)])


def moment(agent=0, ghost=5, diamond=2, seen=(), steps=3, world=WORLD):
    oversight = np.zeros((1, world.cells), dtype=bool)
    oversight[0, list(seen)] = True
    one = np.array([agent])
    return dynamics.State(one, one, np.array([steps]), one, np.array([[ghost, diamond]]), oversight)


def test_text():
    assert ansi(WORLD, moment(seen=[5]), 0).splitlines() == [
        "┌────────────┐",
        "│ @  ·  D  # │",
        "│ · [G] ·  · │",
        "└────────────┘",
        "step 3 of 32",
    ]
    assert ansi(WORLD, moment(agent=5, seen=[5]), 0).splitlines()[2:] == [
        "│ · [@] ·  · │",
        "└────────────┘",
        "step 3 of 32: reached ghost, overseen",
    ]
    assert ansi(WORLD, moment(agent=2), 0).endswith("reached diamond, not overseen")


def test_letters_are_distinct():
    world = make_world(terminals=dict.fromkeys(["ghost", "gold", "Gg", "#", "9 lives"], 1.0))
    assert letters(world) == ("G", "O", "A", "B", "9")


def tile(image, cell, size):
    row, column = divmod(cell, WORLD.width)
    return image[row * size : (row + 1) * size, column * size : (column + 1) * size]


@pytest.mark.parametrize("size", [16, 48])
def test_image(size):
    image, plain = (rgb(WORLD, moment(seen=seen), 0, tile=size) for seen in ([5, 6], []))
    assert (image.shape, image.dtype) == ((2 * size, 4 * size, 3), np.uint8)
    middle = (size // 2, size // 2)
    assert tuple(tile(image, 3, size)[middle]) == WALL
    assert tuple(tile(image, 7, size)[middle]) == FLOOR
    for cell in (5, 6):  # an overseen Ghost and an overseen empty floor have a bright frame and a tint
        assert tuple(tile(image, cell, size)[0, 0]) == FRAME
        assert tuple(tile(image, cell, size)[-size // 7, size // 7]) == LIT
        assert (tile(plain, cell, size) != FRAME).any(axis=-1).all()
    for cell in (0, 1, 2, 3, 4, 7):
        np.testing.assert_array_equal(tile(image, cell, size), tile(plain, cell, size))
    # player, Ghost, Diamond, floor and wall all look different
    looks = {tile(plain, cell, size).tobytes() for cell in (0, 5, 2, 7, 3)}
    assert len(looks) == 5


def test_every_kind_looks_different():
    names = ["ghost", "diamond", *(f"kind{i}" for i in range(12))]
    world = make_world(size=4, terminals=dict.fromkeys(names, 1.0), oversight=0)
    state = dynamics.reset(world, np.zeros(1, np.int64), np.zeros(1, np.int64))
    image = rgb(world, state, 0, tile=24).reshape(4, 24, 4, 24, 3).swapaxes(1, 2).reshape(16, -1)
    assert len({image[cell].tobytes() for cell in state.terminals[0]}) == len(names)


def test_a_player_on_a_terminal_hides_neither():
    alone, on_ghost, ghost = (
        tile(rgb(WORLD, moment(agent=agent), 0, tile=48), cell, 48) for agent, cell in ((0, 0), (5, 5), (0, 5))
    )
    assert len({alone.tobytes(), on_ghost.tobytes(), ghost.tobytes()}) == 3
    assert (on_ghost == ghost).all(axis=-1).mean() > 0.5
    assert (on_ghost[24, 24] == alone[24, 24]).all()


def test_faces_render():
    vector = DiamondGhostVectorEnv(3, render_mode="rgb_array")
    vector.reset(seed=0)
    frames = vector.render()
    scalar = DiamondGhostEnv(render_mode="rgb_array")
    for row, frame in enumerate(frames):
        scalar.reset(seed=row)
        np.testing.assert_array_equal(frame, scalar.render())
    texts = DiamondGhostVectorEnv(2, render_mode="ansi")
    texts.reset(seed=0)
    assert all(text.count("@") == 1 for text in texts.render())
    silent = DiamondGhostEnv()
    silent.reset(seed=0)
    with pytest.raises(ValueError, match="make the environment with a render_mode"):
        silent.render()
    with pytest.raises(ValueError, match="one of ansi, rgb_array, got 'human'"):
        DiamondGhostVectorEnv(2, render_mode="human")


def test_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame")
    rates = []

    class Clock:
        def tick(self, fps):
            rates.append(fps)

    monkeypatch.setattr(pygame.time, "Clock", Clock)
    env, same = DiamondGhostEnv(render_mode="human", size=3), DiamondGhostEnv(render_mode="rgb_array", size=3)
    for one in (env, same):
        one.reset(seed=0)
        one.step(1)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    np.testing.assert_array_equal(shown, same.render())
    assert env.render() is None
    assert rates == [env.metadata["render_fps"]] * 3  # reset, step, render
    env.close()
    env.close()
    assert not pygame.display.get_init()


def test_no_pygame_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = DiamondGhostEnv(render_mode="human")
    with pytest.raises(DependencyNotInstalled, match="pip install pygame-ce"):
        env.reset(seed=0)


def test_what_lies_on_top_is_what_is_drawn_and_reached():
    world = make_world(terminals={"corner": -1.0, "diamond": 1.0}, supervisor=True, moved="overseen", oversight=0.0)
    state = dynamics.reset(world, np.arange(1), np.zeros(1, np.int64))
    state = state._replace(agent=state.terminals[:, -1])
    assert "reached diamond, not overseen" in ansi(world, state, 0)
    alone = make_world(terminals={"diamond": 1.0})
    single = state._replace(terminals=state.terminals[:, -1:])
    assert (rgb(world, state, 0) == rgb(alone, single, 0)).all()
