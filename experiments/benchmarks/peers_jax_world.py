"""The rules of the Diamond/Ghost world in JAX, written again from ``routed_rl.envs``; a test compares the two.

Shapes: ``E`` environments, ``K`` terminal kinds, ``C`` cells.
"""

from __future__ import annotations

from typing import NamedTuple

from routed_rl.envs import World
from routed_rl.extras import require

require("peers", "jax")

import jax.numpy as jnp  # noqa: E402 (what an extra needs is checked first)
from jax import Array, nn  # noqa: E402


class State(NamedTuple):
    """The state of E environments."""

    steps: Array  # (E,) int32: steps taken in this episode
    agent: Array  # (E,) int32: the player's cell
    terminals: Array  # (E, K) int32: each terminal's cell
    overseen: Array  # (E, K) bool: whether each terminal is overseen


class Transition(NamedTuple):
    """The result of one step, before any reset; the fields are those of ``routed_rl.envs.dynamics.Transition``."""

    outcome: Array  # (E,) int32, -1 for none
    overseen: Array  # (E,) bool
    reward: Array  # (E,) float32: the true reward
    terminated: Array  # (E,) bool
    truncated: Array  # (E,) bool


class Rules:
    """The functions of one world. They are pure, so they can be compiled.

    Args:
        world: a world without walls, supervisor, moved terminals and spurious oversight.

    Raises:
        ValueError: for another world.
    """

    def __init__(self, world: World) -> None:
        if len(world.walls) or world.supervisor or world.moved is not None or world.spurious_oversight:
            raise ValueError(f"the rules in JAX are those of the plain Diamond/Ghost world, got {world!r}")
        self.world = world
        self.kinds, self.cells = len(world.names), world.cells
        self.n_draws = 2 * self.kinds + 1
        self.moves = jnp.asarray(world.moves.ravel(), jnp.int32)
        self.rewards = jnp.asarray([*world.rewards.tolist(), 0.0], jnp.float32)

    def reset(self, draws: Array) -> State:
        """Return first states.

        Args:
            draws: ``(E, n_draws)`` uniform numbers in [0, 1). The numbers that they become do not equal those of our
                counter-based generator, but they have the same distribution.
        """
        room = self.cells - jnp.arange(self.kinds + 1)
        # The product may round up to the number of free cells, which is no rank.
        ranks = jnp.minimum((draws[:, : self.kinds + 1] * room).astype(jnp.int32), room - 1)
        ranks = [ranks[:, i] for i in range(self.kinds + 1)]
        for i in reversed(range(self.kinds)):
            ranks[i + 1 :] = [rank + (rank >= ranks[i]) for rank in ranks[i + 1 :]]
        return State(
            steps=jnp.zeros(len(draws), jnp.int32),
            agent=ranks[0],
            terminals=jnp.stack(ranks[1:], axis=1),
            overseen=draws[:, self.kinds + 1 :] < jnp.asarray(self.world.oversight),
        )

    def step(self, state: State, action: Array) -> tuple[State, Transition]:
        """Move every player; the result is not reset. ``action`` is ``(E,)`` int32 in [0, 4)."""
        agent = self.moves[4 * state.agent + action]
        steps = state.steps + 1
        here = state.terminals == agent[:, None]
        terminated = here.any(axis=1)
        outcome = jnp.where(terminated, here.argmax(axis=1).astype(jnp.int32), -1)
        transition = Transition(
            outcome=outcome,
            overseen=(here & state.overseen).any(axis=1),
            reward=self.rewards[outcome],
            terminated=terminated,
            truncated=(steps >= self.world.max_steps) & ~terminated,
        )
        return state._replace(steps=steps, agent=agent), transition

    def observe(self, state: State) -> Array:
        """Return observations ``(E, (K + 2) * C)`` float32: flattened binary planes, as our environments give them."""
        terminals = nn.one_hot(state.terminals, self.cells)
        oversight = (terminals * state.overseen[:, :, None]).sum(axis=1)
        planes = [nn.one_hot(state.agent, self.cells), terminals.reshape(len(state.agent), -1), oversight]
        return jnp.concatenate(planes, axis=1)

    def renew(self, state: State, ended: Array, draws: Array) -> State:
        """Return the state in which the environments that ``ended`` have a new episode, drawn from ``draws``."""
        fresh = self.reset(draws)
        return State(
            *(
                jnp.where(ended[:, None] if old.ndim > 1 else ended, new, old)
                for old, new in zip(state, fresh, strict=True)
            )
        )
