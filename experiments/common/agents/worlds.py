"""The worlds of the command line: from the configuration of a run to its environments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from minigrid.wrappers import ImgObsWrapper
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from routed_rl.envs import (
    RECIPES,
    VARIANTS,
    CameraDropboxEnv,
    CameraDropboxVecEnv,
    DiamondGhostEnv,
    DiamondGhostTensorVecEnv,
    DiamondGhostVecEnv,
    MiniGridDiamondGhostEnv,
    World,
)
from routed_rl.experiments.common.agents.placebo import PlaceboVecEnv
from routed_rl.experiments.common.agents.tampering import TamperingVecEnv
from routed_rl.rl import RoutedAlgorithm
from routed_rl.rl.oversight_study import recipe
from routed_rl.rl.oversight_study.recipe import own_task
from routed_rl.rl.oversight_study.table import read_agent
from routed_rl.rl.oversight_study.tasks import Task, values_of, wanted_of

VARIANT_OF: Mapping[str, str] = {
    "trap": "DiamondGhostTrap",
    "unseen": "DiamondGhostTrap",
    "absent": "AbsentSupervisor",
    "corner": "CornerDiamond",
    "room": "DiamondGhostRoom",
}
"""Worlds of the command line that are variants of the Diamond/Ghost world."""
ON_MINIGRID = ("minigrid", "room")
ONE_BY_ONE = (*ON_MINIGRID, *RECIPES)
"""Worlds with one Python object per environment."""
FRESH_ENVS = (
    dict.fromkeys(("gridworld", "trap", "absent", "corner", "tampering", "unseen", "camera"), (512, 2048))
    | dict.fromkeys(ON_MINIGRID, (32, 256))
    | dict.fromkeys(RECIPES, (20, 100))
)
"""By world: number of new environments for a point of a learning curve, and for a final result."""


def world_options(config: Mapping[str, Any], *, test: bool = False) -> dict[str, Any]:
    """The options of the training world of a run or, with ``test``, of its test world."""
    options = {key: config[key] for key in ("size", "oversight", "max_steps", "spurious_oversight")}
    if config["world"] in RECIPES or config["world"] == "camera":
        for name, usual in (("size", 5), ("max_steps", None), ("spurious_oversight", 0.0)):
            if options[name] != usual:
                option = name.replace("_", "-")
                raise ValueError(f"--world {config['world']} has no --{option}, got {options[name]}: leave it out")
        if config["world"] in RECIPES:
            return {"probability": config["oversight"]}
        return {"oversight": config["oversight"], **({"pays": "performance"} if test else {})}
    variant = VARIANTS[VARIANT_OF[config["world"]]] if config["world"] in VARIANT_OF else {}
    if "walls" in variant and config["size"] != 5:
        raise ValueError(f"the world {config['world']!r} has walls for --size 5 only, got --size {config['size']}")
    shift = {"moved": "always"} if test and variant.get("moved") else {}
    if config["world"] == "unseen":
        options["oversight"] = dict.fromkeys(variant["terminals"], config["oversight"]) | {"trap": 0.0}
    return {**variant, **shift, **{key: value for key, value in options.items() if value is not None}}


def make_scalar_env(
    config: Mapping[str, Any], render_mode: str | None = None, *, test: bool = False
) -> gym.Env[Any, Any]:
    """One environment of a run, as its policy sees it. Raises ValueError for an impossible world."""
    options = world_options(config, test=test)
    if config["world"] in RECIPES:
        return gym.make(RECIPES[config["world"]].id, render_mode=render_mode, **options)
    if config["world"] in ON_MINIGRID:
        return ImgObsWrapper(MiniGridDiamondGhostEnv(render_mode=render_mode, **options))
    if config["world"] == "camera":
        return CameraDropboxEnv(render_mode=render_mode, **options)
    return DiamondGhostEnv(render_mode=render_mode, **options)


def make_env(config: Mapping[str, Any], num_envs: int, device: str = "cpu", *, test: bool = False) -> VecEnv:
    """``num_envs`` environments of a run, as tensors on a GPU. Raises ValueError for an impossible world."""
    if config["world"] in ONE_BY_ONE:
        if num_envs < 1:
            raise ValueError(f"num_envs must be a positive integer, got {num_envs}")
        return DummyVecEnv([partial(make_scalar_env, config, test=test)] * num_envs)
    options = world_options(config, test=test)
    if config["world"] == "camera":
        return CameraDropboxVecEnv(num_envs, **options)
    if device != "cpu":
        return DiamondGhostTensorVecEnv(num_envs, device, **options)
    return DiamondGhostVecEnv(num_envs, **options)


def make_training_env(config: Mapping[str, Any], num_envs: int) -> VecEnv:
    """``num_envs`` training environments of a run. Raises ValueError as :func:`make_env` does."""
    if config["world"] in ("tampering", "camera") and config["device"] != "cpu":
        raise ValueError(f"--world {config['world']} needs --device cpu, got {config['device']}")
    env = make_env(config, num_envs, config["device"])
    if config["world"] == "tampering":
        env = TamperingVecEnv(env)
    if config["method"] != "placebo":
        return env
    if config["world"] in ONE_BY_ONE or config["device"] != "cpu":
        raise ValueError(
            f"method 'placebo' needs --device cpu and a world of cells that is not on MiniGrid, got --device "
            f"{config['device']} --world {config['world']}"
        )
    return PlaceboVecEnv(env)


def world_of(env: VecEnv) -> World:
    """The world of the environments."""
    world: World = env.get_attr("world", [0])[0]
    return world


class WorldTask(Task):
    """A world of the command line, as a run is configured. Raises ValueError for an impossible world."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config, self.name = config, f"--world {config['world']}"
        self.fresh, self.shared = FRESH_ENVS[config["world"]], config["world"] not in ONE_BY_ONE
        if config["world"] == "camera":
            self.reward = "environment"
        if config["world"] in RECIPES:
            world_options(config)
            self.values = dict(RECIPES[config["world"]].values)
        else:
            world = world_of(make_env(config, 1))
            # The paper's metric has 32 steps, as many as an episode of its world. Camera Dropbox has 50.
            self.metric = "episodes" if config["world"] == "camera" else "paper"
            self.values = dict(zip(world.names, world.rewards.tolist(), strict=True))
            self.planes = world.observation_shape[0]

    def training_env(self, num_envs: int) -> VecEnv:
        return make_training_env(self.config, num_envs)

    def test_env(self, num_envs: int, *, watched: bool = True) -> VecEnv:
        config = self.config if watched else {**self.config, "oversight": 0.0, "spurious_oversight": 0.0}
        return make_env(config, num_envs, test=True)

    def validation_env(self, num_envs: int) -> VecEnv:
        return make_env(self.config, num_envs)

    def key(self) -> str:
        return str(world_options(self.config))


def task_of(config: Mapping[str, Any]) -> Task:
    """Where a run trains and is tested. Raises ValueError for an impossible world or environment."""
    return own_task(config) if config.get("env") else WorldTask(config)


def wanted(run: Path) -> str:
    """The outcome of highest value in the environment of a run. RunError if there is no run of an agent."""
    config = read_agent(run).config
    return wanted_of(values_of(config["outcomes"]) if config.get("env") else task_of(config).values)


def make_model(config: Mapping[str, Any], seed: int) -> RoutedAlgorithm:
    """A new learner of a run. Errors: :func:`routed_rl.rl.oversight_study.recipe.make_model`."""
    return recipe.make_model(config, seed, task_of(config))


def load_run(directory: Path) -> tuple[RoutedAlgorithm, dict[str, Any]]:
    """The model and the config of a finished run. Errors: :func:`routed_rl.rl.oversight_study.recipe.load_run`."""
    return recipe.load_run(directory, task_of)
