"""Environments with partial oversight: Diamond/Ghost, Camera Dropbox, and wrappers for any other environment.

Importing this package registers ``RoutedRL/DiamondGhost-v0`` and its :data:`VARIANTS` with Gymnasium, each also as
``RoutedRL/MiniGrid-…-v0``, ``RoutedRL/CameraDropbox-v0``, and all :data:`RECIPES`. The classes that need
Stable-Baselines3 (``…VecEnv``) or MiniGrid (``MiniGridDiamondGhostEnv``, ``SymbolicImage``) are imported at the first
use of their names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

from routed_rl.envs.camera_dropbox import CameraDropboxEnv
from routed_rl.envs.diamond_ghost import DiamondGhostEnv, DiamondGhostVectorEnv
from routed_rl.envs.partial_oversight import Ending, PartialOversight
from routed_rl.envs.recipes import RECIPES, Recipe
from routed_rl.envs.world import VARIANTS, World, make_world

if TYPE_CHECKING:
    from routed_rl.envs.minigrid import MiniGridDiamondGhostEnv
    from routed_rl.envs.partial_oversight_sb3 import PartialOversightVecEnv
    from routed_rl.envs.sb3 import CameraDropboxVecEnv, DiamondGhostVecEnv
    from routed_rl.envs.symbolic import SymbolicImage
    from routed_rl.envs.tensors import DiamondGhostTensorVecEnv

__all__ = [
    "RECIPES",
    "VARIANTS",
    "CameraDropboxEnv",
    "CameraDropboxVecEnv",
    "DiamondGhostEnv",
    "DiamondGhostTensorVecEnv",
    "DiamondGhostVecEnv",
    "DiamondGhostVectorEnv",
    "Ending",
    "MiniGridDiamondGhostEnv",
    "PartialOversight",
    "PartialOversightVecEnv",
    "Recipe",
    "SymbolicImage",
    "World",
    "make_world",
]

# No max_episode_steps: the environments truncate episodes themselves, and recipes where outcomes are read.
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
gymnasium.register("RoutedRL/CameraDropbox-v0", "routed_rl.envs.camera_dropbox:CameraDropboxEnv")
for _recipe in RECIPES.values():
    gymnasium.register(_recipe.id, "routed_rl.envs.recipes:make_recipe", kwargs={"name": _recipe.name})


_LAZY = {
    "CameraDropboxVecEnv": "routed_rl.envs.sb3",
    "DiamondGhostTensorVecEnv": "routed_rl.envs.tensors",
    "DiamondGhostVecEnv": "routed_rl.envs.sb3",
    "MiniGridDiamondGhostEnv": "routed_rl.envs.minigrid",
    "PartialOversightVecEnv": "routed_rl.envs.partial_oversight_sb3",
    "SymbolicImage": "routed_rl.envs.symbolic",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
