"""Environments compiled with JAX under random actions, all steps in one program: ours rewritten, and those of others.

Each function takes the number of environments and of steps per call, and returns the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routed_rl.envs import make_world
from routed_rl.experiments.benchmarks.peers_jax_world import Rules

import jax  # isort: skip  # peers_jax_world has checked that it is installed
import jax.numpy as jnp  # isort: skip
from jax import Array, lax  # isort: skip

Advance = Callable[[Any, Array, Array], Any]
"""From the state of all environments, their actions and a key to the next state."""


def diamond_ghost(batch: int, steps: int) -> Callable[[], None]:
    """Our rules written in JAX."""
    rules = Rules(make_world())

    def reset(key: Array) -> Any:
        state = rules.reset(jax.random.uniform(key, (batch, rules.n_draws)))
        return state, rules.observe(state), jnp.zeros(batch)

    def advance(before: Any, actions: Array, key: Array) -> Any:
        moved, ends = rules.step(before[0], actions)
        draws = jax.random.uniform(key, (batch, rules.n_draws))
        state = rules.renew(moved, ends.terminated | ends.truncated, draws)
        return state, rules.observe(state), ends.reward

    return _played(batch, steps, reset, advance, 4)


def xland(batch: int, steps: int) -> Callable[[], None]:
    """XLand-MiniGrid's version of Empty-5x5 (Nikulin et al. 2023)."""
    import xminigrid
    from xminigrid.wrappers import GymAutoResetWrapper

    env, parameters = xminigrid.make("MiniGrid-Empty-5x5")
    env = GymAutoResetWrapper(env)
    reset, step = jax.vmap(env.reset, (None, 0)), jax.vmap(env.step, (None, 0, 0))
    return _played(
        batch,
        steps,
        lambda key: reset(parameters, jax.random.split(key, batch)),
        lambda before, actions, key: step(parameters, before, actions),
        env.num_actions(parameters),
    )


def navix(batch: int, steps: int) -> Callable[[], None]:
    """Navix's version of Empty-5x5 (Pignatelli et al. 2024)."""
    import navix

    env = navix.make("Navix-Empty-5x5-v0")
    return _played(
        batch,
        steps,
        lambda key: jax.vmap(env.reset)(jax.random.split(key, batch)),
        lambda before, actions, key: jax.vmap(env.step)(before, actions),
        int(env.action_space.maximum) + 1,
    )


def _played(
    batch: int, steps: int, reset: Callable[[Array], Any], advance: Advance, n_actions: int
) -> Callable[[], None]:
    """Return the call. The last state holds the last observations, so XLA must compute them at every step."""

    def play(state: Any, key: Array) -> tuple[Any, Array]:
        key, actions_key, steps_key = jax.random.split(key, 3)
        actions = jax.random.randint(actions_key, (steps, batch), 0, n_actions)

        def step(state: Any, drawn: tuple[Array, Array]) -> tuple[Any, None]:
            return advance(state, *drawn), None

        return lax.scan(step, state, (actions, jax.random.split(steps_key, steps)))[0], key

    program = jax.jit(play, donate_argnums=(0, 1))
    now: list[Any] = []

    def call() -> None:
        if not now:
            now.append((jax.jit(reset)(jax.random.key(0)), jax.random.key(1)))
        now[0] = jax.block_until_ready(program(*now[0]))

    return call
