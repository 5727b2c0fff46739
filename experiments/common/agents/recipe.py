"""Build world, overseer and model from the config of a run. All gridworld commands share this module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Discrete
from minigrid.wrappers import ImgObsWrapper
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from routed_rl.envs import (
    RECIPES,
    VARIANTS,
    DiamondGhostEnv,
    DiamondGhostTensorVecEnv,
    DiamondGhostVecEnv,
    MiniGridDiamondGhostEnv,
    World,
)
from routed_rl.experiments.common.agents.options import CONTRAST
from routed_rl.experiments.common.agents.placebo import PlaceboVecEnv
from routed_rl.experiments.common.agents.tampering import TamperingVecEnv
from routed_rl.rl import (
    Overseer,
    RoutedActorCriticPolicy,
    RoutedAlgorithm,
    RoutedPPO,
    RoutedREINFORCE,
    Steering,
    SymbolicImageEncoder,
    evaluate,
    evaluate_policies,
    steerings,
    true_returns,
)
from routed_rl.rl.oversight_study.table import filtered
from routed_rl.routing import LabelNoise
from routed_rl.runs import RunError, derive_seed, read_run
from routed_rl.runs.process import check_device

MODEL = "model"
"""Name of the final checkpoint in a run directory."""
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
FRESH_ENVS = dict.fromkeys(
    ("gridworld", "trap", "absent", "corner", "tampering", "unseen"), (512, 2048)
) | dict.fromkeys(ONE_BY_ONE, (32, 256))
"""By world: number of new environments for a point of a learning curve, and for a final result."""

SAME_LEARNER = {
    "naive-early-stopped": "naive",
    "oracle-filtered": "oracle",
    "placebo": "routing",
    "shuffled": "routing",
}
"""Methods that use the learner of another method. Only their data, labels, steps or final policy differ."""


def world_options(config: Mapping[str, Any], *, test: bool = False) -> dict[str, Any]:
    """The options of the training world of a run or, with ``test``, of its test world."""
    options = {key: config[key] for key in ("size", "oversight", "max_steps", "spurious_oversight")}
    if config["world"] in RECIPES:
        for name, usual in (("size", 5), ("max_steps", None), ("spurious_oversight", 0.0)):
            if options[name] != usual:
                option = name.replace("_", "-")
                raise ValueError(f"--world {config['world']} has no --{option}, got {options[name]}: leave it out")
        return {"probability": config["oversight"]}
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
    return DiamondGhostEnv(render_mode=render_mode, **options)


def make_env(config: Mapping[str, Any], num_envs: int, device: str = "cpu", *, test: bool = False) -> VecEnv:
    """``num_envs`` environments of a run, as tensors on a GPU. Raises ValueError for an impossible world."""
    if config["world"] in ONE_BY_ONE:
        if num_envs < 1:
            raise ValueError(f"num_envs must be a positive integer, got {num_envs}")
        return DummyVecEnv([partial(make_scalar_env, config, test=test)] * num_envs)
    options = world_options(config, test=test)
    if device != "cpu":
        return DiamondGhostTensorVecEnv(num_envs, device, **options)
    return DiamondGhostVecEnv(num_envs, **options)


def make_training_env(config: Mapping[str, Any], num_envs: int) -> VecEnv:
    """``num_envs`` training environments of a run. Raises ValueError as :func:`make_env` does."""
    env = make_env(config, num_envs, config["device"])
    if config["world"] == "tampering":
        if config["device"] != "cpu":
            raise ValueError(f"--world tampering needs --device cpu, got {config['device']}")
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


def values_of(config: Mapping[str, Any]) -> dict[str, float]:
    """Outcome → its value to the supervisor, in the world of a run."""
    if config["world"] in RECIPES:
        return dict(RECIPES[config["world"]].values)
    world = world_of(make_env(config, 1))
    return dict(zip(world.names, world.rewards.tolist(), strict=True))


def budget(config: Mapping[str, Any]) -> int:
    """Number of environment steps that a run trains for."""
    return math.ceil(config["total_steps"] * filtered(config))


def algorithm(config: Mapping[str, Any]) -> type[RoutedAlgorithm]:
    """The class of the learner of a run."""
    return {"ppo": RoutedPPO, "reinforce": RoutedREINFORCE}[config["learner"]["algorithm"]]


def make_model(config: Mapping[str, Any], seed: int) -> RoutedAlgorithm:
    """A new learner in its training world. Raises ValueError for an option out of range or a missing device."""
    learner, device = dict(config["learner"]), config["device"]
    check_device(device)
    env = make_training_env(config, learner.pop("n_envs"))
    values, method = values_of(config), config["method"]
    if not budget(config):
        raise ValueError(f"method {method!r} trains for oversight x total steps: --oversight must be above 0")
    if method == "shuffled" and (config["flip_rate"] or config["hard_first"]):
        raise ValueError("method 'shuffled' has its own flip rate; leave out --flip-rate and --hard-first")
    # A shuffled label says nothing: each of the labels has the same probability, whatever happened.
    flip_rate = 1 - 1 / len(values) if method == "shuffled" else config["flip_rate"]
    overseer = Overseer(
        values,
        SAME_LEARNER.get(method, method),
        unlabelled=config["unlabelled"],
        noise=LabelNoise(config["miss_rate"], flip_rate, config["hard_first"]),
        oversight=config["oversight"],
    )
    hidden, entropy = learner.pop("hidden"), learner.pop("entropy")
    kind = learner.pop("networks")
    policy, networks = "MlpPolicy", {"hidden": (hidden, hidden), "value_hidden": (hidden, hidden)}
    image = len(env.observation_space.shape or ()) == 3
    if (kind == "symbolic") != image or (kind == "paper" and config["world"] in RECIPES):
        hint = "use --preset minigrid" if image else "leave out --preset and --learner.networks"
        raise ValueError(f"networks {kind!r} cannot read the observations of the world {config['world']!r}; {hint}")
    if kind == "paper":
        policy, networks = "PaperPolicy", {"hidden": (hidden, hidden), "value_hidden": (hidden, 32)}
        networks["planes"] = world_of(env).observation_shape[0]
    elif kind == "symbolic":
        networks["features_extractor_class"] = SymbolicImageEncoder
        networks["features_extractor_kwargs"] = {"sizes": (hidden,)}
        networks["normalize_images"] = False
    if learner.pop("algorithm") == "reinforce":
        for option in ("batch_size", "n_epochs", "clip_range"):
            del learner[option]
    return algorithm(config)(
        policy,
        env,
        overseer,
        ent_coef=LinearSchedule(*entropy, end_fraction=1.0),
        vf_coef=learner.pop("value_coef"),
        policy_kwargs=networks,
        seed=derive_seed(seed, "model"),
        device=device,
        **learner,
    )


def evaluate_model(model: RoutedAlgorithm, config: Mapping[str, Any], seed: int) -> dict[str, dict[str, Any]]:
    """Evaluate the policies of a trained model in new environments of its test world. Returns results by policy.

    The policies are those of :func:`policies`, and a control ``sharpened:NAME`` for each ``contrast:NAME``. The control
    is steered to NAME without contrast. Its temperature gives it the same entropy as the contrastive policy.

    ``unwatched_return`` is the true return in states where no terminal state is overseen.
    """
    fewer, many = FRESH_ENVS[config["world"]]
    env, outcomes = make_env(config, many, test=True), model.overseer.outcomes
    seed = derive_seed(seed, "evaluation")
    chosen = policies(model)
    results = evaluate_policies(model, env, seed=seed, policies=chosen, metric="paper")
    for name in [name for name in chosen if name.startswith("contrast:")]:
        wanted = name.removeprefix("contrast:")
        search = make_env(config, fewer, test=True)
        temperature = matching_temperature(model.policy, wanted, results[name]["entropy"], search, outcomes, seed)
        control = {f"sharpened:{wanted}": {"choice": wanted, "temperature": temperature}}
        chosen |= control
        results |= evaluate_policies(model, env, seed=seed, policies=control, metric="paper")
        results[f"sharpened:{wanted}"]["temperature"] = temperature
    unwatched = make_env({**config, "oversight": 0.0, "spurious_oversight": 0.0}, many, test=True)
    for name, value in true_returns(model, unwatched, seed=seed, policies=chosen, metric="paper").items():
        results[name]["unwatched_return"] = value
    return results


def policies(model: RoutedAlgorithm) -> dict[str, Steering]:
    """The policies under which a run is evaluated: ``steer:NAME``, ``unsteered`` and ``contrast:NAME``.

    A contrastive policy is steered to a good outcome and avoids all bad outcomes. It needs a gate, and modules for good
    and for bad outcomes.
    """
    values = model.overseer.values
    bad = {name: CONTRAST for name, value in values.items() if value < 0}
    chosen = steerings(model.policy)
    if model.overseer.method.gate and bad and isinstance(model.action_space, Discrete):
        good = [name for name, value in values.items() if value > 0]
        chosen |= {f"contrast:{name}": {"choice": name, "avoid": bad} for name in good}
    return chosen


def matching_temperature(
    policy: RoutedActorCriticPolicy, module: str, entropy: float, env: VecEnv, outcomes: Sequence[str], seed: int
) -> float:
    """The temperature, between 1/16 and 16, at which the policy of one module has the given mean entropy (nats)."""
    low, high = -math.log(16), math.log(16)
    for _ in range(8):
        middle = (low + high) / 2
        with policy.steered(module, temperature=math.exp(middle)):
            reached = evaluate(policy, env, outcomes, seed=seed, metric="paper")["entropy"]
        low, high = (middle, high) if reached < entropy else (low, middle)
    return math.exp((low + high) / 2)


def load_run(directory: Path) -> tuple[RoutedAlgorithm, dict[str, Any]]:
    """The model and the config of a finished run.

    Raises:
        RunError: if the directory is not a finished run, or if the model belongs to another run.
        CheckpointError: if the model file is damaged.
    """
    config = read_run(directory).config
    if not (directory / MODEL).is_dir():
        raise RunError(f"the run {str(directory)!r} is not finished; start its train command again to continue it")
    model = algorithm(config).load(directory / MODEL, device="cpu")
    expected = make_model({**config, "device": "cpu", "learner": {**config["learner"], "n_envs": 1}}, seed=0)
    for name in ("observation_space", "action_space"):
        if getattr(model, name) != getattr(expected, name):
            raise RunError(
                f"the model {str(directory / MODEL)!r} belongs to another run: its {name} is {getattr(model, name)}"
            )
    if model.overseer.to_dict() != expected.overseer.to_dict():
        raise RunError(
            f"the model {str(directory / MODEL)!r} belongs to another run: its overseer is {model.overseer.to_dict()}"
        )
    return model, config
