"""Environment steps per second: our vector environments compared with MiniGrid environments."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np

import routed_rl.envs  # noqa: F401 (registers the environments)
from routed_rl.experiments.benchmarks.timing import Measured, take_turns

VECTOR, OURS, MINIGRID = "RoutedRL/DiamondGhost-v0", "RoutedRL/MiniGrid-DiamondGhost-v0", "MiniGrid-Empty-5x5-v0"
STEPS = {1: 2000, 64: 1500, 512: 400, 4096: 100}
SCALAR_STEPS = 1000


def measure(repeats: int, tick: Callable[[], None]) -> dict[str, Measured]:
    """Seconds per environment step on one core, with random actions, resets included."""
    cases = {f"vector face, {n} environments": (n * steps, _vector(n, steps)) for n, steps in STEPS.items()}
    cases |= {f"{name}, one environment": (SCALAR_STEPS, _scalar(name)) for name in (OURS, MINIGRID)}
    return take_turns(cases, repeats, tick)


def calls(repeats: int) -> int:
    """Number of calls of ``tick`` in :func:`measure`."""
    return (repeats + 1) * (len(STEPS) + 2)


def _vector(n: int, steps: int) -> Callable[[], None]:
    env = gym.make_vec(VECTOR, num_envs=n)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(4, size=(steps, n))

    def play() -> None:
        for row in actions:
            env.step(row)

    return play


def _scalar(name: str) -> Callable[[], None]:
    env = gym.make(name, disable_env_checker=True)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(int(env.action_space.n), size=SCALAR_STEPS).tolist()

    def play() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return play
