"""Speed of training, compared with Stable-Baselines3 PPO, with the matrix products alone, and without routing."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from unittest import mock

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from torch.utils._python_dispatch import TorchDispatchMode

from routed_rl.experiments.benchmarks.timing import Measured, Stopwatch, take_turns
from routed_rl.experiments.common.agents.options import PRESETS, PresetName
from routed_rl.experiments.common.agents.worlds import make_model, make_training_env, world_options
from routed_rl.rl import PaperPolicy, ParallelLearner, RoutedActorCriticPolicy, RoutedAlgorithm

UPDATES: dict[PresetName, int] = {"quick": 5, "paper": 1}
"""Updates per call, about one second."""
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
PRODUCTS = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
Device = Literal["cpu", "cuda"]
Shape = tuple[torch.Size, tuple[int, ...]]


def measure(preset: PresetName, repeats: int, tick: Callable[[], None]) -> dict[str, Measured]:
    """Seconds per update: ours, only its matrix products, ours without routing, and Stable-Baselines3 PPO.

    With a C++ compiler, there is also ours compiled.
    """
    model = trained(preset)
    products = record_products(model)
    steps = model.n_envs * model.n_steps
    unrouted = mock.patch("routed_rl.rl.networks.route_gradient", lambda x, weight: x)

    def without_routing() -> None:
        with unrouted:
            learn(model, UPDATES[preset])

    peer = stable_baselines3(preset)
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        "ours": (UPDATES[preset], lambda: learn(model, UPDATES[preset])),
        "its matrix products": (UPDATES[preset], lambda: multiply(products, UPDATES[preset])),
        "ours without routing": (UPDATES[preset], without_routing),
        "Stable-Baselines3 PPO": (1, lambda: peer.learn(steps, reset_num_timesteps=False)),
    }
    if COMPILER:
        compiled = trained(preset)
        compiled.compile()
        cases["ours, compiled"] = (UPDATES[preset], lambda: learn(compiled, UPDATES[preset]))
    return take_turns(cases, repeats, tick)


def calls(repeats: int) -> int:
    """Number of calls of ``tick`` in :func:`measure`."""
    return (repeats + 1) * (5 if COMPILER else 4)


def calls_parallel_seeds(repeats: int) -> int:
    """Number of calls of ``tick`` in :func:`measure_parallel_seeds`."""
    return (repeats + 1) * sum(len(n) for device, n in SEEDS.items() if device == "cpu" or torch.cuda.is_available())


SEEDS: dict[Device, tuple[int, ...]] = {"cpu": (1, 4, 16), "cuda": (1, 16, 64, 256)}
"""Numbers of seeds trained as one batch, by device."""


def measure_parallel_seeds(repeats: int, tick: Callable[[], None]) -> dict[str, dict[int, float]]:
    """Environment steps per second of ``quick``, summed over seeds, by device and number of seeds in the batch.

    A missing device is left out.
    """
    rates: dict[str, dict[int, float]] = {}
    for device, numbers in SEEDS.items():
        if device == "cuda" and not torch.cuda.is_available():
            continue
        config = replace(PRESETS["quick"], oversight=0.1, device=device).config()
        steps = UPDATES["quick"] * config["learner"]["n_envs"] * config["learner"]["n_steps"]
        cases: dict[int, tuple[int, Callable[[], object]]] = {}
        for seeds in numbers:
            models = [make_model(config, seed) for seed in range(seeds)]
            learner = ParallelLearner(models, [make_training_env(config, seeds * config["learner"]["n_envs"])])
            learner.learn(2 * steps, [None] * seeds)
            cases[seeds] = (seeds * steps, partial(_learn_together, learner, steps))
        rates[device] = {seeds: row.rate for seeds, row in take_turns(cases, repeats, tick).items()}
    return rates


def _learn_together(learner: ParallelLearner, steps: int) -> None:
    learner.learn(steps, [None] * len(learner.models), reset_num_timesteps=False)
    if learner.template.device.type == "cuda":
        torch.cuda.synchronize()


def steps_per_second_on_gpu(preset: PresetName, repeats: int) -> float | None:
    """Environment steps per second with everything on the GPU. None if there is no GPU."""
    if not torch.cuda.is_available():
        return None
    model = trained(preset, "cuda")
    updates = 20 * UPDATES[preset]

    def run() -> None:
        learn(model, updates)
        torch.cuda.synchronize()

    measured = take_turns({"gpu": (updates * model.n_envs * model.n_steps, run)}, repeats)
    return measured["gpu"].rate


def trained(preset: PresetName, device: Device = "cpu") -> RoutedAlgorithm:
    """A model after its first updates, when replay has begun."""
    model = make_model(replace(PRESETS[preset], oversight=0.1, device=device).config(), 0)
    learn(model, 2)
    return model


def learn(model: RoutedAlgorithm, updates: int) -> None:
    """Train for a number of updates, without callbacks."""
    steps = updates * model.n_envs * model.n_steps
    model.learn(steps, reset_num_timesteps=model.num_timesteps == 0)


def stable_baselines3(preset: PresetName, env: VecEnv | None = None) -> PPO:
    """Stable-Baselines3 PPO with the networks, hyperparameters and number of environments of the preset.

    Args:
        preset: quick or paper.
        env: the environments; None: one Python object per environment, as its users make them.
    """
    config = replace(PRESETS[preset], oversight=0.1).config()
    learner = config["learner"]
    batch = learner["n_envs"] * learner["n_steps"]
    whole = learner["algorithm"] == "reinforce"
    paper = learner["networks"] == "paper"
    return PPO(
        PaperPolicy if paper else RoutedActorCriticPolicy,
        env or make_vec_env("RoutedRL/DiamondGhost-v0", learner["n_envs"], env_kwargs=world_options(config)),
        learning_rate=learner["learning_rate"],
        n_steps=learner["n_steps"],
        batch_size=batch if whole else learner["batch_size"],
        n_epochs=1 if whole else learner["n_epochs"],
        gamma=learner["gamma"],
        gae_lambda=learner["gae_lambda"],
        ent_coef=learner["entropy"][1],
        max_grad_norm=learner["max_grad_norm"] or float("inf"),
        normalize_advantage=False,
        policy_kwargs={"modules": ("ghost", "diamond")},
        seed=0,
        device="cpu",
    )


def record_products(model: RoutedAlgorithm) -> Counter[tuple[Any, Shape, Shape]]:
    """Counts of the matrix products of one update, forward and backward, by operation, shape and layout."""
    with _Recorder() as recorder:
        learn(model, 1)
    return recorder.products


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[tuple[Any, Shape, Shape]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            left, right = args[-2:]
            self.products[(func, (left.shape, left.stride()), (right.shape, right.stride()))] += 1
        return func(*args, **(kwargs or {}))


def multiply(products: Counter[tuple[Any, Shape, Shape]], updates: int) -> None:
    """Compute only the recorded matrix products."""
    with torch.no_grad():
        for (operation, left, right), count in products.items():
            a, b = (torch.empty_strided(*layout).fill_(0.5) for layout in (left, right))
            if operation is torch.ops.aten.addmm.default:
                bias = torch.zeros(b.shape[-1])
                for _ in range(count * updates):
                    torch.addmm(bias, a, b)
            else:
                for _ in range(count * updates):
                    operation(a, b)


def parts(preset: PresetName) -> dict[str, float]:
    """Shares of the time of an update, by part."""
    model = trained(preset)
    watch = Stopwatch()
    watch.watch(model.env, "step", "environment")
    watch.watch(model, "_act", "acting")
    watch.watch(model, "_values", "values")
    watch.watch(model.buffer, "finish_rollout", "labels and advantages")
    watch.watch(model.policy, "evaluate_routed", "learning: forward")
    watch.watch(model, "_learn", "learning: losses")
    watch.watch(model, "_learn_replayed", "replay: forward and losses")
    watch.watch(model.policy.optimizer, "step", "optimizer")
    backward = torch.Tensor.backward
    watch.watch(torch.Tensor, "backward", "backward")
    try:
        with watch.part("the rest"):
            learn(model, UPDATES[preset])
    finally:
        torch.Tensor.backward = backward
    total = sum(watch.seconds.values())
    return {name: seconds / total for name, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1])}
