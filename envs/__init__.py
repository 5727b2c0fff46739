"""Environments with partial oversight: one batched implementation behind several thin interfaces.

Importing this package registers ``RoutedRL/DiamondGhost-v0`` and its :data:`VARIANTS` with Gymnasium, each also as
``RoutedRL/MiniGrid-…-v0``. The classes that need Stable-Baselines3 (``…VecEnv``) or MiniGrid
(``MiniGridDiamondGhostEnv``) are imported at the first use of their names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

from routed_rl.envs.diamond_ghost import DiamondGhostEnv, DiamondGhostVectorEnv
from routed_rl.envs.world import VARIANTS, World, make_world

if TYPE_CHECKING:
    from routed_rl.envs.minigrid import MiniGridDiamondGhostEnv
    from routed_rl.envs.sb3 import DiamondGhostVecEnv
    from routed_rl.envs.tensors import DiamondGhostTensorVecEnv

__all__ = [
    "VARIANTS",
    "DiamondGhostEnv",
    "DiamondGhostTensorVecEnv",
    "DiamondGhostVecEnv",
    "DiamondGhostVectorEnv",
    "MiniGridDiamondGhostEnv",
    "World",
    "make_world",
]

# No max_episode_steps: the environments truncate episodes themselves.
for _name, _options in {"DiamondGhost": {}, **VARIANTS}.items():
    gymnasium.register(
        id=f"RoutedRL/{_name}-v0",
        entry_point="routed_rl.envs.diamond_ghost:DiamondGhostEnv",
        vector_entry_point="routed_rl.envs.diamond_ghost:DiamondGhostVectorEnv",
        kwargs=dict(_options),
    )
    gymnasium.register(
        id=f"RoutedRL/MiniGrid-{_name}-v0",
        entry_point="routed_rl.envs.minigrid:MiniGridDiamondGhostEnv",
        kwargs=dict(_options),
    )


_LAZY = {
    "DiamondGhostTensorVecEnv": "routed_rl.envs.tensors",
    "DiamondGhostVecEnv": "routed_rl.envs.sb3",
    "MiniGridDiamondGhostEnv": "routed_rl.envs.minigrid",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
