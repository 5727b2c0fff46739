"""The Diamond/Ghost world as a MiniGrid environment: a player that turns, and sees only a part of the grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from minigrid.core.constants import COLOR_TO_IDX, COLORS, OBJECT_TO_IDX, TILE_PIXELS
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Floor, Goal, Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.rendering import fill_coords, point_in_circle, point_in_rect, rotate_fn

from routed_rl.envs.batch import Batch
from routed_rl.envs.dynamics import spare_bits
from routed_rl.envs.random import below
from routed_rl.envs.rendering import FRAME, WHITE, Colour, check_render_mode
from routed_rl.envs.world import WorldOptions, make_world

_OWN_COLOURS = {"ghost": "purple", "diamond": "blue"}
_LIT: Colour = (72, 54, 0)


class Terminal(WorldObj):
    """A terminal: a MiniGrid "goal" object whose state is 1 if it is overseen.

    Args:
        name: the name of its kind.
        colour: the name of a MiniGrid colour.
        reward: its true reward.
        overseen: whether an episode that ends here is overseen.
    """

    def __init__(self, name: str, colour: str, reward: float, overseen: bool) -> None:
        WorldObj.__init__(self, "goal", colour)
        self.name = name
        self.reward = reward
        self.overseen = overseen

    def can_overlap(self) -> bool:
        return True

    def encode(self) -> tuple[int, ...]:
        return _Encoding(self.name, (OBJECT_TO_IDX[self.type], COLOR_TO_IDX[self.color], int(self.overseen)))

    def render(self, img: np.ndarray) -> None:
        if self.overseen:
            _light(img)
        _ICONS.get(self.name, _disc)(img, COLORS[self.color])


class SoughtTerminal(Terminal, Goal):
    """The terminal that the mission names. It is a ``Goal``, because ``DirectionObsWrapper`` points to a ``Goal``."""


class OverseenFloor(Floor):
    """A cell that is marked as overseen but has no terminal; its state is 1."""

    def __init__(self) -> None:
        super().__init__("yellow")

    def encode(self) -> tuple[int, ...]:
        return OBJECT_TO_IDX[self.type], COLOR_TO_IDX[self.color], 1

    def render(self, img: np.ndarray) -> None:
        _light(img)


class MiniGridDiamondGhostEnv(MiniGridEnv):
    """A MiniGrid gridworld: turn and walk to a terminal with a reward. The player sees which terminals are overseen.

    A seed gives the same layouts as in :class:`routed_rl.envs.DiamondGhostEnv`. It also sets the player's first
    direction.

    - Observation: MiniGrid's ``image``, ``direction`` and ``mission``. In addition ``oversight``, a plane that is 1
      where a cell of ``image`` is marked as overseen. The same mark is the third number (the state) of a cell in
      ``image``. MiniGrid shows the player's own cell as empty. Here the last observation of an episode shows the
      terminal that was reached, as in the world without MiniGrid.
    - Actions: MiniGrid's seven actions; only left, right and forward have an effect.
    - Reward, end, info and the ``seed`` of ``reset``: as in :class:`routed_rl.envs.DiamondGhostEnv`.

    Args:
        render_mode: None, "rgb_array" or "human" (a window).
        agent_view_size: side of the square that the player sees, in cells; odd, at least 3. Use it in place of
            MiniGrid's ``ViewSizeWrapper``.
        see_through_walls, screen_size, highlight, tile_size, agent_pov: as for any MiniGrid environment.
        **options: the options of :func:`routed_rl.envs.make_world`. ``size`` is the grid inside MiniGrid's outer wall.
            The default ``max_steps`` is four times the number of cells, because a turn is a step too.

    Attributes:
        world: the world that the options describe.
        colours: the colour of each terminal kind, in the order of ``world.names``.

    Raises:
        ValueError: for an option out of range, or more terminal kinds than MiniGrid has colours.

    Example:
        >>> env = MiniGridDiamondGhostEnv(size=3, oversight=1.0)
        >>> obs, info = env.reset(seed=0)
        >>> obs["mission"], obs["image"].shape, obs["oversight"].shape
        ('get to the blue goal square', (7, 7, 3), (7, 7))
    """

    observation_space: spaces.Dict

    def __init__(
        self,
        *,
        render_mode: str | None = None,
        agent_view_size: int = 7,
        see_through_walls: bool = False,
        screen_size: int = 640,
        highlight: bool = True,
        tile_size: int = TILE_PIXELS,
        agent_pov: bool = False,
        **options: Unpack[WorldOptions],
    ) -> None:
        world = make_world(**options)
        self.world = world if "max_steps" in options else replace(world, max_steps=4 * world.cells)
        self.colours = _colours(world.names)
        if not isinstance(agent_view_size, (int, np.integer)) or agent_view_size < 3 or agent_view_size % 2 == 0:
            raise ValueError(f"agent_view_size must be an odd integer of at least 3, got {agent_view_size!r}")
        self._sought = int(np.argmax(world.rewards))
        # The batch holds the layout of the episode. MiniGrid holds the player's position and the step count.
        self._batch = Batch(self.world, 1, autoreset=False)
        super().__init__(
            mission_space=MissionSpace(_mission, [[self.colours[self._sought]]]),
            width=world.width + 2,
            height=world.height + 2,
            max_steps=self.world.max_steps,
            see_through_walls=see_through_walls,
            agent_view_size=int(agent_view_size),
            render_mode=check_render_mode(render_mode, self.metadata["render_modes"]),
            screen_size=screen_size,
            highlight=highlight,
            tile_size=tile_size,
            agent_pov=agent_pov,
        )
        plane = spaces.Box(0, 1, (self.agent_view_size, self.agent_view_size), np.uint8)
        self.observation_space = spaces.Dict({**self.observation_space.spaces, "oversight": plane})
        self.reward_range = (min(0.0, world.rewards.min().item()), max(0.0, world.rewards.max().item()))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episode 0 of the given seed; without a seed, start the next episode. ``options`` are ignored."""
        super(MiniGridEnv, self).reset(seed=seed)
        self._batch.reset([seed], self.np_random)
        return super().reset()

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one step.

        Raises:
            ValueError: for an action that is not an integer in [0, 7).
            ResetNeeded: before the first :meth:`reset`, or after the end of an episode.
        """
        if self._terminal() is not None or self.step_count >= self.max_steps:
            raise ResetNeeded("the episode has ended; call reset() before the next step()")
        if action not in self.action_space:
            raise ValueError(f"an action must be 0 to {self.action_space.n - 1}, got {action!r}")
        obs, reward, terminated, truncated, _ = super().step(action)
        info: dict[str, Any] = {}
        if terminated or truncated:
            reached = self._terminal()
            info = {
                "outcome": None if reached is None else reached.name,
                "overseen": reached is not None and reached.overseen,
            }
        return obs, float(reward), terminated, truncated and not terminated, info

    def gen_obs(self) -> dict[str, Any]:
        """Return MiniGrid's observation with the oversight plane added, and with a terminal that was reached."""
        obs = super().gen_obs()
        own, here = (self.agent_view_size // 2, -1), self.grid.get(*self.agent_pos)
        if isinstance(here, Terminal):
            obs["image"][own] = here.encode()
        oversight = obs["image"][..., 2].copy()
        oversight[own] = 0 if here is None else here.encode()[2]
        return {**obs, "oversight": oversight}

    def gen_obs_grid(self, agent_view_size: int | None = None) -> tuple[Grid, np.ndarray]:
        """Return the part of the grid in view, and which of its cells are visible.

        Raises:
            ValueError: for another size than the environment's own, as MiniGrid's ``ViewSizeWrapper`` asks for. The
                oversight plane, which the wrapper does not know, would keep its size.
        """
        if agent_view_size not in (None, self.agent_view_size):
            raise ValueError(
                f"the oversight plane cannot follow a view of {agent_view_size} cells: make the environment with "
                f"agent_view_size={agent_view_size}, without ViewSizeWrapper"
            )
        view: tuple[Grid, np.ndarray] = super().gen_obs_grid()
        return view

    def get_state(self) -> dict[str, np.ndarray]:
        """Return the state as five int64 arrays; :meth:`set_state` restores it exactly."""
        saved = self._batch.get_state()
        column, row = self.agent_pos
        moment = {
            "steps": self.step_count,
            "agent": (row - 1) * self.world.width + column - 1,
            "direction": self.agent_dir,
        }
        return {**saved, **{name: np.array([value], dtype=np.int64) for name, value in moment.items()}}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a state that :meth:`get_state` returned; raise a ValueError if it is not one."""
        direction = np.asarray(state.get("direction"))
        if direction.dtype != np.int64 or direction.shape != (1,) or not 0 <= direction.item() < 4:
            raise ValueError(
                f"a state's 'direction' must be int64 of shape (1,), 0 to 3, got {state.get('direction')!r}"
            )
        self._batch.set_state({name: array for name, array in state.items() if name != "direction"})
        self._gen_grid(self.width, self.height)
        self.agent_dir = direction.item()
        self.step_count = self._batch.state.steps.item()

    def _gen_grid(self, width: int, height: int) -> None:
        world, state = self.world, self._batch.state
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        for cell in world.walls:
            self.put_obj(Wall(), *self._position(cell))
        for cell in np.flatnonzero(state.oversight[0]):
            self.put_obj(OverseenFloor(), *self._position(cell))
        for kind, cell in enumerate(state.terminals[0]):
            make = SoughtTerminal if kind == self._sought else Terminal
            overseen = state.oversight[0, cell].item()
            terminal = make(world.names[kind], self.colours[kind], world.rewards[kind].item(), overseen)
            self.put_obj(terminal, *self._position(cell))
        self.agent_pos = self._position(state.agent[0])
        self.agent_dir = below(spare_bits(world, state.key, state.episode), 4).item()

    def _position(self, cell: np.int64) -> tuple[np.int64, np.int64]:
        row, column = np.divmod(cell, self.world.width)
        return column + 1, row + 1

    def _terminal(self) -> Terminal | None:
        """Return the terminal in the player's cell; None if there is none."""
        _ = self._batch.state  # raises ResetNeeded if reset() was never called
        here = self.grid.get(*self.agent_pos)
        return here if isinstance(here, Terminal) else None

    def _reward(self) -> float:
        terminal = self._terminal()
        return 0.0 if terminal is None else terminal.reward


def _mission(colour: str) -> str:
    """Return the mission. MiniGrid's wrappers know only some words, so it names the colour and not the kind."""
    return f"get to the {colour} goal square"


def _colours(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) > len(COLORS):
        raise ValueError(f"MiniGrid has only {len(COLORS)} colours, too few for {len(names)} terminals: {list(names)}")
    own = {name: colour for name, colour in _OWN_COLOURS.items() if name in names}
    others = ("yellow", "green", "red", "grey", "blue", "purple")
    left = iter([colour for colour in others if colour not in own.values()])
    return tuple(own[name] if name in own else next(left) for name in names)


class _Encoding(tuple[int, ...]):
    """An encoding whose key in MiniGrid's tile cache includes the name of the terminal kind.

    All environments share this cache, and its keys are ``encode() + (…)``. Terminals with different names may have the
    same colour in different environments, and MiniGrid's own goals too. But they need different tiles.
    """

    name: str

    def __new__(cls, name: str, numbers: tuple[int, int, int]) -> _Encoding:
        encoding = super().__new__(cls, numbers)
        encoding.name = name
        return encoding

    def __add__(self, other: tuple[Any, ...]) -> tuple[Any, ...]:  # type: ignore[override]
        return (self.name, *self, *other)


def _light(img: np.ndarray) -> None:
    fill_coords(img, point_in_rect(0, 1, 0, 1), FRAME)
    fill_coords(img, point_in_rect(0.1, 0.9, 0.1, 0.9), _LIT)


def _disc(img: np.ndarray, colour: np.ndarray) -> None:
    fill_coords(img, point_in_circle(0.5, 0.5, 0.31), colour)


def _ghost(img: np.ndarray, colour: np.ndarray) -> None:
    fill_coords(img, point_in_circle(0.5, 0.44, 0.27), colour)
    fill_coords(img, point_in_rect(0.23, 0.77, 0.44, 0.74), colour)
    for x in (0.32, 0.5, 0.68):
        fill_coords(img, point_in_circle(x, 0.74, 0.09), colour)
    for x in (0.4, 0.6):
        fill_coords(img, point_in_circle(x, 0.42, 0.08), WHITE)
        fill_coords(img, point_in_circle(x, 0.44, 0.035), (0, 0, 0))


def _diamond(img: np.ndarray, colour: np.ndarray) -> None:
    for half, shade in ((0.26, colour), (0.17, colour * 0.6 + 102), (0.08, colour * 0.2 + 204)):
        square = point_in_rect(0.5 - half, 0.5 + half, 0.5 - half, 0.5 + half)
        fill_coords(img, rotate_fn(square, 0.5, 0.5, math.pi / 4), shade)


_ICONS: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {"ghost": _ghost, "diamond": _diamond}
