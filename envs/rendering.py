"""Render the world as text, as images, or in a window. An overseen cell is bright, with a frame and an eye."""

from __future__ import annotations

import colorsys
import math
import string
from collections.abc import Callable, Sequence
from functools import lru_cache, singledispatch
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from PIL import Image, ImageDraw, ImageFont

from routed_rl.envs.dynamics import State
from routed_rl.envs.world import World

FPS = 4
TILE = 48
_SCALE = 4  # sprites are drawn this many times larger, then scaled down smoothly

Colour = tuple[int, int, int]
FLOOR: Colour = (248, 249, 250)
GRID: Colour = (222, 226, 230)
WALL: Colour = (73, 80, 87)
LIT: Colour = (255, 236, 153)
FRAME: Colour = (245, 159, 0)
PLAYER: Colour = (38, 70, 83)
WHITE: Colour = (255, 255, 255)
_ICON_COLOURS: dict[str, Colour] = {"ghost": (141, 90, 151), "diamond": (42, 157, 143)}


def check_render_mode(mode: str | None, modes: Sequence[str]) -> str | None:
    """Return the mode; raise a ValueError unless it is None or one of ``modes``."""
    if mode is not None and mode not in modes:
        raise ValueError(f"render_mode must be None or one of {', '.join(modes)}, got {mode!r}")
    return mode


def render(world: Any, state: Any, row: int, mode: str | None) -> str | np.ndarray:
    """Return environment ``row`` as :func:`ansi` text or as an :func:`rgb` image; ValueError if ``mode`` is None."""
    if mode is None:
        raise ValueError("render_mode is None: make the environment with a render_mode to render it")
    return ansi(world, state, row) if mode == "ansi" else rgb(world, state, row)


def letters(world: World) -> tuple[str, ...]:
    """Return one character per terminal kind: the first unused one of its name, the alphabet, or the digits."""
    chosen: list[str] = []
    for name in world.names:
        own = [c for c in name.upper() if c.isalnum()]
        chosen.append(next((c for c in (*own, *string.ascii_uppercase, *string.digits) if c not in chosen), "?"))
    return tuple(chosen)


@singledispatch
def ansi(world: Any, state: State, row: int) -> str:
    """Return environment ``row`` as text: ``@`` player, letters terminals, ``#`` walls, ``[ ]`` overseen cells."""
    agent, terminals = int(state.agent[row]), state.terminals[row].tolist()
    symbols = ["·"] * world.cells
    for cell in world.walls:
        symbols[cell] = "#"
    for cell, letter in zip(terminals, letters(world), strict=True):
        symbols[cell] = letter
    symbols[agent] = "@"
    cells = [f"[{s}]" if seen else f" {s} " for s, seen in zip(symbols, state.oversight[row], strict=True)]
    edge = "─" * (3 * world.width)
    lines = ["".join(cells[start : start + world.width]) for start in range(0, world.cells, world.width)]
    caption = f"step {int(state.steps[row])} of {world.max_steps}"
    if agent in terminals:
        seen = "overseen" if state.oversight[row][agent] else "not overseen"
        reached = max(kind for kind, cell in enumerate(terminals) if cell == agent)
        caption += f": reached {world.names[reached]}, {seen}"
    return "\n".join([f"┌{edge}┐", *(f"│{line}│" for line in lines), f"└{edge}┘", caption])


@singledispatch
def rgb(world: Any, state: State, row: int, tile: int = TILE) -> np.ndarray:
    """Return environment ``row`` as an image, (height * tile, width * tile, 3) uint8."""
    floor, lit, wall = (ground(kind, tile) for kind in ("floor", "lit", "wall"))
    tiles = [lit if seen else floor for seen in state.oversight[row]]
    for cell in world.walls:
        tiles[cell] = wall
    on_top = {cell: kind for kind, cell in enumerate(state.terminals[row].tolist())}  # the last terminal in each cell
    for cell, kind in on_top.items():
        tiles[cell] = over(tiles[cell], _terminal(world.names, kind, letters(world)[kind], tile))
    agent = int(state.agent[row])
    tiles[agent] = over(tiles[agent], player(tile))
    return tiled(tiles, world.height, world.width, tile)


def tiled(tiles: Sequence[np.ndarray], height: int, width: int, tile: int) -> np.ndarray:
    """Return the image, (height * tile, width * tile, 3) uint8, of cells (tile, tile, 3) listed row by row."""
    grid = np.stack(tiles).reshape(height, width, tile, tile, 3)
    return grid.swapaxes(1, 2).reshape(height * tile, width * tile, 3)


def over(ground: np.ndarray, sprite: np.ndarray) -> np.ndarray:
    """Return a cell's picture, (tile, tile, 3), with a sprite, (tile, tile, 4), drawn over it."""
    alpha = sprite[..., 3:].astype(np.uint16)
    return ((sprite[..., :3] * alpha + ground * (255 - alpha) + 127) // 255).astype(np.uint8)


class Canvas:
    """Draws in a unit square; ``pixels()`` returns it as (tile, tile, 4) uint8."""

    def __init__(self, tile: int, background: Colour | None = None) -> None:
        self.tile, self.size = tile, tile * _SCALE
        fill = (0, 0, 0, 0) if background is None else (*background, 255)
        self._image = Image.new("RGBA", (self.size, self.size), fill)
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        self._draw.polygon([(x * self.size, y * self.size) for x, y in points], fill=colour)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour) -> None:
        box = (x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        self._draw.ellipse([value * self.size for value in box], fill=colour)

    def frame(self, width: float, colour: Colour) -> None:
        self._draw.rectangle((0, 0, self.size - 1, self.size - 1), outline=colour, width=round(width * self.size))

    def letter(self, x: float, y: float, height: float, text: str, colour: Colour) -> None:
        font = ImageFont.load_default(height * self.size)
        self._draw.text((x * self.size, y * self.size), text, fill=colour, font=font, anchor="mm")

    def pixels(self) -> np.ndarray:
        return np.asarray(self._image.resize((self.tile, self.tile), Image.Resampling.BOX))


def eye(canvas: Canvas, x: float, y: float, size: float) -> None:
    """Draw an eye of this half width around a point."""
    canvas.ellipse(x, y, size, size * 0.62, PLAYER)
    canvas.ellipse(x, y, size * 0.8, size * 0.45, WHITE)
    canvas.ellipse(x, y, size * 0.36, size * 0.36, PLAYER)


@lru_cache(maxsize=64)
def ground(kind: str, tile: int) -> np.ndarray:
    """Return a cell's background, (tile, tile, 3): ``floor``, ``wall``, or ``lit`` for an overseen floor."""
    canvas = Canvas(tile, {"floor": FLOOR, "lit": LIT, "wall": WALL}[kind])
    if kind == "lit":
        canvas.frame(0.07, FRAME)
        eye(canvas, 0.81, 0.17, 0.15)
    else:
        canvas.frame(0.02, GRID)
    return canvas.pixels()[..., :3]


@lru_cache(maxsize=64)
def player(tile: int) -> np.ndarray:
    """Return the sprite of the player, (tile, tile, 4)."""
    canvas = Canvas(tile)
    canvas.ellipse(0.5, 0.54, 0.28, 0.28, WHITE)
    canvas.ellipse(0.5, 0.54, 0.25, 0.25, PLAYER)
    for x in (0.41, 0.59):
        canvas.ellipse(x, 0.5, 0.05, 0.07, WHITE)
    return canvas.pixels()


@lru_cache(maxsize=256)
def _terminal(names: tuple[str, ...], kind: int, letter: str, tile: int) -> np.ndarray:
    """Return the sprite of a terminal kind: an icon for Ghost and Diamond, a polygon with a letter for others."""
    canvas = Canvas(tile)
    icon = _ICONS.get(names[kind])
    if icon is not None:
        icon(canvas)
    else:
        number = [name for name in names if name not in _ICONS].index(names[kind])
        hue = (0.02 + number * 0.381966) % 1.0  # steps of the golden ratio give distinct hues for any number of kinds
        red, green, blue = (round(255 * c) for c in colorsys.hls_to_rgb(hue, 0.45, 0.65))
        turns = [(i / (3 + number % 6) - 0.25) * 2 * math.pi for i in range(3 + number % 6)]
        canvas.polygon([(0.5 + 0.38 * math.cos(a), 0.56 + 0.38 * math.sin(a)) for a in turns], (red, green, blue))
        canvas.letter(0.5, 0.58, 0.32, letter, WHITE)
    return canvas.pixels()


def _ghost(canvas: Canvas) -> None:
    colour = _ICON_COLOURS["ghost"]
    canvas.ellipse(0.5, 0.47, 0.28, 0.28, colour)
    hem = [(0.22 + 0.56 * i / 6, 0.88 if i % 2 == 0 else 0.78) for i in range(7)]
    canvas.polygon([(0.22, 0.47), *hem, (0.78, 0.47)], colour)
    for x in (0.4, 0.6):
        canvas.ellipse(x, 0.46, 0.075, 0.095, WHITE)
        canvas.ellipse(x, 0.48, 0.035, 0.045, PLAYER)


def _diamond(canvas: Canvas) -> None:
    dark, light = _ICON_COLOURS["diamond"], (116, 198, 190)
    left, right, top, waist, bottom = 0.16, 0.84, 0.28, 0.47, 0.9
    canvas.polygon([(0.3, top), (0.7, top), (right, waist), (0.5, bottom), (left, waist)], dark)
    canvas.polygon([(0.3, top), (0.7, top), (0.63, waist), (0.37, waist)], light)
    canvas.polygon([(0.37, waist), (0.5, bottom), (left, waist)], light)


_ICONS: dict[str, Callable[[Canvas], None]] = {"ghost": _ghost, "diamond": _diamond}


class Window:
    """A pygame window that shows images at a constant rate.

    Raises:
        DependencyNotInstalled: if pygame is not installed.
    """

    def __init__(self, title: str, fps: int) -> None:
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled('render_mode "human" needs pygame: pip install pygame-ce') from error
        self._pygame: Any = pygame
        self._fps = fps
        pygame.display.init()
        pygame.display.set_caption(title)
        self._clock = pygame.time.Clock()

    def show(self, image: np.ndarray) -> None:
        """Show an image, (H, W, 3) uint8, and wait until it is time for the next one."""
        pygame = self._pygame
        size = (image.shape[1], image.shape[0])
        screen = pygame.display.get_surface()
        if screen is None or screen.get_size() != size:
            screen = pygame.display.set_mode(size)
        pygame.surfarray.blit_array(screen, image.swapaxes(0, 1))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        self._pygame.display.quit()
