"""From a run's config to its world, overseer and model: what every gridworld command shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.utils import LinearSchedule

from envs import DiamondGhostVecEnv
from routed_rl.rl import Overseer, RoutedAlgorithm, RoutedPPO, RoutedREINFORCE, evaluate_policies
from routed_rl.routing import LabelNoise
from routed_rl.runs import RunError, derive_seed, read_run

MODEL = "model"
"""The final checkpoint's name in a run directory."""
METRIC_ENVS, RESULT_ENVS = 512, 2048
"""Fresh environments behind a point of a learning curve, and behind a final result."""


def one_thread() -> None:
    """One thread per process: more are slower on small networks, and change the bits. Denormals, slow too, are 0."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def world_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run's world."""
    return {key: config[key] for key in ("size", "oversight", "max_steps", "spurious_oversight")}


def make_env(config: Mapping[str, Any], num_envs: int) -> DiamondGhostVecEnv:
    """The run's world, ``num_envs`` times; ValueError if the config asks for an impossible one."""
    return DiamondGhostVecEnv(num_envs, **world_options(config))


def filtered(config: Mapping[str, Any]) -> float:
    """What the run's budget of environment steps is multiplied by: the oversight for ``oracle-filtered``, else 1.

    That reference (Cloud et al. 2024, section F) is an oracle which trains on as many episodes as the others see
    overseen; its learning curve is drawn against steps divided by this.
    """
    return float(config["oversight"]) if config["method"] == "oracle-filtered" else 1.0


def budget(config: Mapping[str, Any]) -> int:
    """Environment steps that the run trains for."""
    return math.ceil(config["total_steps"] * filtered(config))


def algorithm(config: Mapping[str, Any]) -> type[RoutedAlgorithm]:
    """The class of the run's learner."""
    return {"ppo": RoutedPPO, "reinforce": RoutedREINFORCE}[config["learner"]["algorithm"]]


def make_model(config: Mapping[str, Any], seed: int, device: str = "cpu") -> RoutedAlgorithm:
    """A new learner in its world; ValueError for an option out of range."""
    learner = dict(config["learner"])
    env = make_env(config, learner.pop("n_envs"))
    overseer = Overseer(
        dict(zip(env.outcome_names, env.world.rewards.tolist(), strict=True)),
        "oracle" if config["method"] == "oracle-filtered" else config["method"],
        unlabelled=config["unlabelled"],
        noise=LabelNoise(config["miss_rate"], config["flip_rate"]),
    )
    hidden, entropy = learner.pop("hidden"), learner.pop("entropy")
    if learner.pop("networks") == "paper":
        policy, networks = "PaperPolicy", {"value_hidden": (hidden, 32), "planes": env.world.observation_shape[0]}
    else:
        policy, networks = "MlpPolicy", {"value_hidden": (hidden, hidden)}
    if learner.pop("algorithm") == "reinforce":
        for option in ("batch_size", "n_epochs", "clip_range"):
            del learner[option]
    return algorithm(config)(
        policy,
        env,
        overseer,
        ent_coef=LinearSchedule(*entropy, end_fraction=1.0),
        vf_coef=learner.pop("value_coef"),
        policy_kwargs={"hidden": (hidden, hidden), **networks},
        seed=derive_seed(seed, "model"),
        device=device,
        **learner,
    )


def evaluate_model(
    model: RoutedAlgorithm, config: Mapping[str, Any], num_envs: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Results by policy (``steer:…``, ``unsteered``) in ``num_envs`` fresh environments."""
    env = make_env(config, num_envs)
    return evaluate_policies(model.policy, env, model.overseer.outcomes, seed=derive_seed(seed, "evaluation"))


def load_run(directory: Path) -> tuple[RoutedAlgorithm, dict[str, Any]]:
    """A finished run's model and config.

    Raises:
        RunError: if the directory is no finished run, or its model another run's; CheckpointError if that is not sound.
    """
    config = read_run(directory).config
    if not (directory / MODEL).is_dir():
        raise RunError(f"the run {str(directory)!r} is not finished: start its train command again to continue it")
    model = algorithm(config).load(directory / MODEL, device="cpu")
    expected = make_model({**config, "learner": {**config["learner"], "n_envs": 1}}, seed=0)
    for name in ("observation_space", "action_space"):
        if getattr(model, name) != getattr(expected, name):
            raise RunError(f"{str(directory / MODEL)!r} is not this run's: its {name} is {getattr(model, name)}")
    if model.overseer.to_dict() != expected.overseer.to_dict():
        raise RunError(f"{str(directory / MODEL)!r} is not this run's: it was trained by {model.overseer.to_dict()}")
    return model, config


def steer(model: RoutedAlgorithm, choice: str | None, ablate: str | None) -> str:
    """Steer a loaded model as the command line says and return the policy's name.

    Raises:
        ValueError: for an unknown module, or both options at once.
    """
    if choice is not None and ablate is not None:
        raise ValueError(f"--steer {choice} and --ablate {ablate} exclude each other")
    if choice is not None:
        model.steer(choice)
        return f"steer:{choice}"
    if ablate is not None:
        model.ablate(ablate)
        return f"ablate:{ablate}"
    return "unsteered"
