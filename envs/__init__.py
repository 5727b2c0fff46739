"""Environments with partial oversight, each one batched dynamics behind several thin faces.

Importing this package registers ``RoutedRL/DiamondGhost-v0`` with Gymnasium. ``DiamondGhostVecEnv`` needs
Stable-Baselines3, which is imported when that name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium

from envs.diamond_ghost import DiamondGhostEnv, DiamondGhostVectorEnv
from envs.world import World, make_world

if TYPE_CHECKING:
    from envs.sb3 import DiamondGhostVecEnv

__all__ = ["DiamondGhostEnv", "DiamondGhostVecEnv", "DiamondGhostVectorEnv", "World", "make_world"]

# No max_episode_steps: the world truncates by itself.
gymnasium.register(
    id="RoutedRL/DiamondGhost-v0",
    entry_point="envs.diamond_ghost:DiamondGhostEnv",
    vector_entry_point="envs.diamond_ghost:DiamondGhostVectorEnv",
)


def __getattr__(name: str) -> Any:
    if name == "DiamondGhostVecEnv":
        from envs.sb3 import DiamondGhostVecEnv

        return DiamondGhostVecEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
