"""``routed-rl benchmark --device cuda``: speed on a GPU within a time limit, most important rows first.

Each row is one line of JSON, printed when it is measured. A row that fails prints its error, and the others go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from routed_rl.envs import DiamondGhostTensorVecEnv
from routed_rl.experiments.benchmarks import language
from routed_rl.experiments.benchmarks.timing import machine, take_turns
from routed_rl.experiments.benchmarks.training import learn, trained
from routed_rl.experiments.common.agents.options import PRESETS, PresetName
from routed_rl.experiments.common.agents.worlds import make_model, make_training_env
from routed_rl.rl import ParallelLearner

Device = Literal["cpu", "cuda"]
ENVIRONMENTS = {"cuda": (4096, 65_536, 1_048_576), "cpu": (64,)}
"""Numbers of tensor environments, by device. A CPU only tests this script, so its numbers are small."""
SEEDS: dict[str, dict[PresetName, tuple[int, ...]]] = {
    "cuda": {"quick": (1, 16, 64, 256), "paper": (1, 16, 64)},
    "cpu": {"quick": (2,)},
}
"""Numbers of seeds trained as one batch, by device and preset."""
LANGUAGE = {
    "cuda": {"stories-28m": (64, 256), "neox-303m": (16, 512)},
    "cpu": {"tiny": (2, 17)},
}
"""Batch shapes, by device and model: rows, and tokens per row."""
STEPS, UPDATES, REPEATS = 50, 5, 3


def main(device: Device, minutes: float) -> None:
    """Print a description of the machine, then one row after another until the time is over, as JSON lines."""
    until = time.monotonic() + 60 * minutes
    _print("machine", machine())
    for name, measure in rows(device):
        if time.monotonic() > until:
            _print(name, {"skipped": f"the limit of {minutes:g} minutes is over"})
            continue
        try:
            _print(name, measure())
        except Exception as error:  # device time is scarce: an error in one row must not stop the others
            _print(name, {"failed": f"{type(error).__name__}: {error}"[:600]})
        if device == "cuda":
            torch.cuda.empty_cache()


def rows(device: Device) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The rows: their names, and the functions that measure them."""
    for n in ENVIRONMENTS[device]:
        yield f"environment, {n}", partial(environment, device, n)
    for preset in SEEDS[device]:
        yield f"{preset}, one run", partial(one_run, device, preset)
    for preset, numbers in SEEDS[device].items():
        for seeds in numbers:
            yield f"{preset}, {seeds} seeds at once", partial(seeds_at_once, device, preset, seeds)
    for size, (n_rows, length) in LANGUAGE[device].items():
        yield f"language model, {size}", partial(language_model, device, size, n_rows, length)
    yield "share of time in kernels", partial(kernels, device)


def environment(device: Device, n: int) -> dict[str, Any]:
    """Steps per second of ``n`` Diamond/Ghost environments under random actions."""
    env = DiamondGhostTensorVecEnv(n, device, oversight=0.1)
    env.reset()
    actions = torch.randint(4, (STEPS, n), device=device)

    def run() -> None:
        for chosen in actions:
            env.step(chosen)
        _wait(device)

    measured = take_turns({"env": (STEPS * n, run)}, REPEATS)["env"]
    return {"steps_per_second": measured.rate}


def one_run(device: Device, preset: PresetName) -> dict[str, Any]:
    """Environment steps per second of one learner."""
    model = trained(preset, device)

    def run() -> None:
        learn(model, UPDATES)
        _wait(device)

    measured = take_turns({"run": (UPDATES * model.n_envs * model.n_steps, run)}, REPEATS)["run"]
    return {"steps_per_second": measured.rate}


def seeds_at_once(device: Device, preset: PresetName, seeds: int) -> dict[str, Any]:
    """Environment steps per second of several seeds trained as one batched computation, summed over seeds."""
    config = replace(PRESETS[preset], oversight=0.1, device=device).config()
    n_envs, steps = config["learner"]["n_envs"], config["learner"]["n_envs"] * config["learner"]["n_steps"]
    models = [make_model(config, seed) for seed in range(seeds)]
    learner = ParallelLearner(models, [make_training_env(config, seeds * n_envs)])
    learner.learn(2 * steps, [None] * seeds)

    def run() -> None:
        learner.learn(UPDATES * steps, [None] * seeds, reset_num_timesteps=False)
        _wait(device)

    measured = take_turns({"run": (UPDATES * steps * seeds, run)}, REPEATS)["run"]
    return {"steps_per_second": measured.rate, **_peak(device)}


def language_model(device: Device, preset: str, n_rows: int, length: int) -> dict[str, Any]:
    """Speed of training a language model: our loop against a bare loop, routing against no routing; bf16 on a GPU."""
    precision: Literal["fp32", "bf16"] = "bf16" if device == "cuda" else "fp32"
    found = language.measure_preset(preset, n_rows, length, REPEATS, device=device, precision=precision)
    return {**found, **_peak(device)}


def kernels(device: Device) -> dict[str, Any]:
    """Seconds per update of ``quick``, and the shares of this time in which kernels and copies run on the device."""
    model = trained("quick", device)
    learn(model, UPDATES)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        learn(model, UPDATES)
        _wait(device)
        seconds = time.perf_counter() - start
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    busy = {True: 0.0, False: 0.0}
    for event in events:
        busy["memcpy" in event.name.lower()] += event.device_time_total / 1e6
    return {
        "seconds_per_update": seconds / UPDATES,
        "kernels": busy[False] / seconds,
        "copies": busy[True] / seconds,
        "kernels_per_update": len(events) / UPDATES,
    }


def _peak(device: Device) -> dict[str, float]:
    if device == "cpu":
        return {}
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gigabytes": round(peak, 2)}


def _wait(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _print(name: str, found: dict[str, Any]) -> None:
    print(json.dumps({"row": name, **found}), flush=True)
