"""A board of the Diamond/Ghost world, and what a policy does on it. No page, no pictures: numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from routed_rl.envs import World, dynamics
from routed_rl.envs.world import next_cells
from routed_rl.rl import RoutedActorCriticPolicy

PLAYER, WALL, OVERSEEN = "player", "wall", "overseen"
MOVES = ("up", "right", "down", "left")


@dataclass(frozen=True)
class Board:
    """Where everything is. Cells are numbered row by row.

    Attributes:
        world: the world in which the agent was trained: size, kinds of terminal states, planes of the observation.
        player: the player's cell.
        terminals: the cell of each kind of terminal state.
        walls: cells that block the way.
        overseen: cells with the mark of oversight.
    """

    world: World
    player: int
    terminals: Mapping[str, int]
    walls: frozenset[int] = frozenset()
    overseen: frozenset[int] = frozenset()

    @classmethod
    def usual(cls, world: World) -> Board:
        """Return a board whose terminal states lie apart, with the player in the middle and nothing overseen."""
        free = [int(cell) for cell in world.free]
        places = [free[len(free) // 2], *(free[i * (len(free) - 1) // 4] for i in (3, 1, 4, 0, 2))]
        apart = list(dict.fromkeys([*places, *free]))
        cells = dict(zip(reversed(world.names), apart[1:], strict=False))
        return cls(world, apart[0], {name: cells[name] for name in world.names}, frozenset(map(int, world.walls)))

    def piece(self, cell: int) -> str | None:
        """Return what is in a cell: the player, the name of a terminal state, a wall, or None."""
        if cell == self.player:
            return PLAYER
        if cell in self.walls:
            return WALL
        return next((name for name, at in self.terminals.items() if at == cell), None)

    def place(self, piece: str, cell: int) -> Board:
        """Return the board with a piece in this cell. Two pieces change places; marks and walls are set or taken away.

        Args:
            piece: PLAYER, the name of a terminal state, WALL or OVERSEEN.

        Raises:
            ValueError: for a wall where a piece is, or a piece where a wall is.
        """
        if piece == OVERSEEN:
            everywhere = frozenset(map(int, self.world.free)) if self.world.supervisor else {cell}
            return replace(self, overseen=self.overseen.symmetric_difference(everywhere))
        there = self.piece(cell)
        if piece == WALL:
            if there not in (None, WALL):
                raise ValueError(f"there is the {there}: move it away before you build a wall")
            return replace(self, walls=self.walls.symmetric_difference({cell}))
        if there == WALL:
            raise ValueError("there is a wall: take it away first")
        before = self.player if piece == PLAYER else self.terminals[piece]
        player, terminals = self.player, dict(self.terminals)
        for name, at in ((there, before), (piece, cell)):
            if name == PLAYER:
                player = at
            elif name is not None:
                terminals[name] = at
        return replace(self, player=player, terminals=terminals)

    def places(self) -> list[int]:
        """Return the cells from which a player acts: those without wall and terminal state."""
        taken = self.walls.union(self.terminals.values())
        return [cell for cell in range(self.world.cells) if cell not in taken]

    def observations(self) -> torch.Tensor:
        """Return what the agent sees from each of :meth:`places`, ``(N, planes * cells)`` float32.

        Walls are part of it only in worlds that have them. Elsewhere the agent does not see them.
        """
        places, count = np.array(self.places()), len(self.places())
        marks = np.zeros(self.world.cells, dtype=bool)
        marks[list(self.overseen)] = True
        state = dynamics.State(
            key=np.zeros(count, dtype=np.int64),
            episode=np.zeros(count, dtype=np.int64),
            steps=np.zeros(count, dtype=np.int64),
            agent=places,
            terminals=np.tile([self.terminals[name] for name in self.world.names], (count, 1)),
            oversight=np.tile(marks, (count, 1)),
        )
        seen = np.asarray(dynamics.observe(self.world, state)).reshape(count, -1, self.world.cells)
        if "walls" in self.world.plane_names:
            seen[:, self.world.plane_names.index("walls")] = np.isin(np.arange(self.world.cells), list(self.walls))
        return torch.from_numpy(seen.reshape(count, -1))

    def next_cells(self) -> np.ndarray:
        """Return the next cell for each cell and action, ``(cells, 4)``; walls and edges stop the player."""
        blocked = np.zeros((self.world.height, self.world.width), dtype=bool)
        blocked.flat[list(self.walls)] = True
        return next_cells(blocked)


@dataclass(frozen=True)
class Reading:
    """What a policy would do on a board.

    Attributes:
        board: the board.
        probabilities: of each move by cell, ``(cells, 4)``; 0 where the player cannot be.
        gate: the gate's weight of each module by cell, ``(cells, modules)``.
        alone: the moves of each module when it acts alone, ``(modules, cells, 4)``.
        modules: names of the modules.
    """

    board: Board
    probabilities: np.ndarray
    gate: np.ndarray
    alone: np.ndarray
    modules: tuple[str, ...]

    def ends(self) -> dict[str | None, float]:
        """Return the exact chance of each end of an episode from the player's cell; None: the step limit."""
        board, there, ended = self.board, self.board.next_cells(), list(self.board.terminals.values())
        at = np.zeros(board.world.cells)
        at[board.player] = 1
        for _ in range(board.world.max_steps):
            stays = np.zeros_like(at)
            stays[ended] = at[ended]
            np.add.at(stays, there, (at - stays)[:, None] * self.probabilities)
            at = stays
        ends: dict[str | None, float] = {name: float(at[cell]) for name, cell in board.terminals.items()}
        return {**ends, None: max(0.0, 1 - sum(ends.values()))}

    def play(self, seed: int) -> list[int]:
        """Return the cells of a sampled episode, from the player's cell to its end."""
        random, there = np.random.default_rng(seed), self.board.next_cells()
        trail = [self.board.player]
        while trail[-1] not in self.board.terminals.values() and len(trail) <= self.board.world.max_steps:
            chances = self.probabilities[trail[-1]].astype(float)
            trail.append(int(there[trail[-1], random.choice(4, p=chances / chances.sum())]))
        return trail


def read(policy: RoutedActorCriticPolicy, board: Board) -> Reading:
    """Return what a policy, steered as it is, does on a board."""
    places, seen = board.places(), board.observations()

    def spread(values: torch.Tensor) -> np.ndarray:
        whole = np.zeros((board.world.cells, values.shape[1]), dtype=np.float32)
        whole[places] = values.numpy()
        return whole

    def moves() -> np.ndarray:
        return spread(policy.get_distribution(seen).distribution.probs)

    with torch.no_grad():
        acts = moves()
        gate = spread(policy.gate_weights(seen))
        alone = []
        for name in policy.module_names:
            with policy.steered(name) if len(policy.module_names) > 1 else policy.steered():
                alone.append(moves())
    return Reading(board, acts, gate, np.stack(alone), policy.module_names)


def outcome(board: Board, trail: list[int]) -> str:
    """Return one sentence that says how an episode ended."""
    steps = len(trail) - 1
    counted = f"{steps} step{'s' * (steps != 1)}"
    reached = next((name for name, cell in board.terminals.items() if cell == trail[-1]), None)
    if reached is None:
        return f"reached nothing within {counted}"
    return (
        f"reached the {reached.capitalize()} after {counted}, {'' if trail[-1] in board.overseen else 'not '}overseen"
    )
