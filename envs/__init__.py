"""Environments with partial oversight, each one batched dynamics behind several thin faces.

Importing this package registers ``RoutedRL/DiamondGhost-v0`` and ``RoutedRL/MiniGrid-DiamondGhost-v0`` with
Gymnasium. ``DiamondGhostVecEnv`` needs Stable-Baselines3 and ``MiniGridDiamondGhostEnv`` needs MiniGrid, which are
imported when those names are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium

from envs.diamond_ghost import DiamondGhostEnv, DiamondGhostVectorEnv
from envs.world import World, make_world

if TYPE_CHECKING:
    from envs.minigrid import MiniGridDiamondGhostEnv
    from envs.sb3 import DiamondGhostVecEnv

__all__ = [
    "DiamondGhostEnv",
    "DiamondGhostVecEnv",
    "DiamondGhostVectorEnv",
    "MiniGridDiamondGhostEnv",
    "World",
    "make_world",
]

# No max_episode_steps: the worlds truncate by themselves.
gymnasium.register(
    id="RoutedRL/DiamondGhost-v0",
    entry_point="envs.diamond_ghost:DiamondGhostEnv",
    vector_entry_point="envs.diamond_ghost:DiamondGhostVectorEnv",
)
gymnasium.register(
    id="RoutedRL/MiniGrid-DiamondGhost-v0",
    entry_point="envs.minigrid:MiniGridDiamondGhostEnv",
)


def __getattr__(name: str) -> Any:
    if name == "DiamondGhostVecEnv":
        from envs.sb3 import DiamondGhostVecEnv

        return DiamondGhostVecEnv
    if name == "MiniGridDiamondGhostEnv":
        from envs.minigrid import MiniGridDiamondGhostEnv

        return MiniGridDiamondGhostEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
