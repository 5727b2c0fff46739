"""From the configuration of a run to its learner, and from a trained learner to its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Discrete
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from routed_rl.options.oversight import CONTRAST
from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.evaluation import evaluate, evaluate_policies, steerings, true_returns
from routed_rl.rl.networks import SymbolicImageEncoder
from routed_rl.rl.overseer import Overseer
from routed_rl.rl.oversight_study.methods import learner_method
from routed_rl.rl.oversight_study.table import filtered, read_agent
from routed_rl.rl.oversight_study.tasks import OwnTask, Task
from routed_rl.rl.ppo import RoutedPPO
from routed_rl.rl.reinforce import RoutedREINFORCE
from routed_rl.rl.steering import Steering
from routed_rl.routing import LabelNoise
from routed_rl.runs import RunError, derive_seed
from routed_rl.runs.process import check_device
from routed_rl.wording import written

MODEL = "model"
"""Name of the final checkpoint in a run directory."""
TaskOf = Callable[[Mapping[str, Any]], Task]
"""From the configuration of a run to its task."""


def own_task(config: Mapping[str, Any]) -> OwnTask:
    """Return the task of a run in an environment of the user's own. Raises ValueError as :class:`OwnTask` does."""
    env, device = (written(f"--{name}", config[name]) for name in ("env", "device"))
    if config["method"] == "placebo":
        raise ValueError(f"method 'placebo' needs a world of cells of this project, got {env}")
    if config["device"] != "cpu":
        raise ValueError(f"{env} runs on the CPU; leave out {device}")
    return OwnTask(config["env"], config["outcomes"], config["oversight"])


def budget(config: Mapping[str, Any]) -> int:
    """Number of environment steps that a run trains for."""
    return math.ceil(config["total_steps"] * filtered(config))


def algorithm(config: Mapping[str, Any]) -> type[RoutedAlgorithm]:
    """The class of the learner of a run."""
    return {"ppo": RoutedPPO, "reinforce": RoutedREINFORCE}[config["learner"]["algorithm"]]


def make_model(config: Mapping[str, Any], seed: int, task: Task) -> RoutedAlgorithm:
    """A new learner in its training world. Raises ValueError for an option out of range or a missing device."""
    learner, device = dict(config["learner"]), config["device"]
    check_device(device)
    if not budget(config):
        raise ValueError(f"method {config['method']!r} trains for oversight x total steps: --oversight must be above 0")
    env = task.training_env(learner.pop("n_envs"))
    values, method = task.values, config["method"]
    if method == "shuffled" and (config["flip_rate"] or config["hard_first"]):
        raise ValueError("method 'shuffled' has its own flip rate; leave out --flip-rate and --hard-first")
    # A shuffled label says nothing: each of the labels has the same probability, whatever happened.
    flip_rate = 1 - 1 / len(values) if method == "shuffled" else config["flip_rate"]
    overseer = Overseer(
        values,
        learner_method(method),
        unlabelled=config["unlabelled"],
        reward=config["reward"] or task.reward,
        noise=LabelNoise(config["miss_rate"], flip_rate, config["hard_first"]),
        oversight=config["oversight"],
    )
    entropy = learner.pop("entropy")
    policy, networks = _networks(learner.pop("networks"), learner.pop("hidden"), env, task)
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


def _networks(kind: str, hidden: int, env: VecEnv, task: Task) -> tuple[str, dict[str, Any]]:
    """The name of the policy's class, and its arguments. Raises ValueError if it cannot read the observations."""
    networks: dict[str, Any] = {"hidden": (hidden, hidden), "value_hidden": (hidden, hidden)}
    space = env.observation_space
    image = len(space.shape or ()) == 3
    if kind == "auto":
        if isinstance(space, spaces.Dict):
            return "MultiInputPolicy", networks
        if is_image_space(space):
            return "CnnPolicy", networks
        kind = "symbolic" if image and np.issubdtype(space.dtype, np.integer) else "mlp"  # type: ignore[arg-type]
        image = kind == "symbolic"
    if (kind == "symbolic") != image or (kind == "paper" and task.planes is None):
        hint = f"use {written('--preset', 'minigrid')}" if image else "leave out --preset and --learner.networks"
        if isinstance(task, OwnTask):
            hint = f"use {written('--learner.networks', 'auto')}"
        raise ValueError(f"networks {kind!r} cannot read the observations of the world {task.name!r}; {hint}")
    if kind == "paper":
        return "PaperPolicy", {**networks, "value_hidden": (hidden, 32), "planes": task.planes}
    if kind == "symbolic":
        networks["features_extractor_class"] = SymbolicImageEncoder
        networks["features_extractor_kwargs"] = {"sizes": (hidden,)}
        networks["normalize_images"] = False
    return "MlpPolicy", networks


def evaluate_model(model: RoutedAlgorithm, task: Task, seed: int) -> dict[str, dict[str, Any]]:
    """Evaluate the policies of a trained model in new environments of its test world. Returns results by policy.

    The policies are those of :func:`policies`, and a control ``sharpened:NAME`` for each ``contrast:NAME``. The control
    is steered to NAME without contrast. Its temperature gives it the same entropy as the contrastive policy.

    ``unwatched_return`` is the true return in states where no terminal state is overseen.
    """
    fewer, many = task.fresh
    env = task.test_env(many)
    seed = derive_seed(seed, "evaluation")
    chosen = policies(model)
    results = evaluate_policies(model, env, seed=seed, policies=chosen, **task.measure(env))
    for name in [name for name in chosen if name.startswith("contrast:")]:
        wanted = name.removeprefix("contrast:")
        search = task.test_env(fewer)
        temperature = matching_temperature(
            model, wanted, results[name]["entropy"], search, seed, **task.measure(search)
        )
        control = {f"sharpened:{wanted}": {"choice": wanted, "temperature": temperature}}
        chosen |= control
        results |= evaluate_policies(model, env, seed=seed, policies=control, **task.measure(env))
        results[f"sharpened:{wanted}"]["temperature"] = temperature
    unwatched = task.test_env(many, watched=False)
    for name, value in true_returns(model, unwatched, seed=seed, policies=chosen, **task.measure(env)).items():
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
    model: RoutedAlgorithm, module: str, entropy: float, env: VecEnv, seed: int, **measure: Any
) -> float:
    """The temperature, between 1/16 and 16, at which the policy of one module has the given mean entropy (nats)."""
    low, high = -math.log(16), math.log(16)
    for _ in range(8):
        middle = (low + high) / 2
        with model.steered(module, temperature=math.exp(middle)):
            reached = evaluate(model, env, seed=seed, **measure)["entropy"]
        low, high = (middle, high) if reached < entropy else (low, middle)
    return math.exp((low + high) / 2)


def load_run(directory: Path, task_of: TaskOf) -> tuple[RoutedAlgorithm, dict[str, Any]]:
    """The model and the config of a finished run.

    Raises:
        RunError: if the directory is not a finished run, or if the model belongs to another run.
        CheckpointError: if the model file is damaged.
    """
    config = read_agent(directory).config
    if not (directory / MODEL).is_dir():
        raise RunError(f"the run {str(directory)!r} is not finished; start its train command again to continue it")
    model = algorithm(config).load(directory / MODEL, device="cpu")
    here = {**config, "device": "cpu", "learner": {**config["learner"], "n_envs": 1}}
    expected = make_model(here, 0, task_of(here))
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
