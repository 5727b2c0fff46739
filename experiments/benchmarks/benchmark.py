"""``routed-rl benchmark``: speed compared with other implementations and matrix products; memory with our formula."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from routed_rl.errors import at_least, user_input
from routed_rl.experiments.benchmarks import (
    accelerator,
    distillation,
    environments,
    language,
    learning,
    memory,
    peers,
    routing,
    training,
)
from routed_rl.experiments.benchmarks.options import Benchmark
from routed_rl.experiments.benchmarks.timing import as_json, machine
from routed_rl.experiments.common.agents.options import PRESETS
from routed_rl.experiments.common.display import show_table
from routed_rl.options.oversight import Learner
from routed_rl.runs.process import check_device, one_thread
from routed_rl.runs.progress import progress_display
from routed_rl.wording import written

OURS, COMPILED, PRODUCTS = "ours", "ours, compiled", "its matrix products"
UNROUTED, PEER = "ours without routing", "Stable-Baselines3 PPO"

ROUTING_COLUMNS = {
    "milliseconds": ("ms", ".1f"),
    "times_unrouted": ("time / unrouted", ".3f"),
    "megabytes_kept": ("MB kept for backward", ".0f"),
}
LANGUAGE_COLUMNS = {
    "tokens_per_second": ("tokens/s", ",.0f"),
    "times_bare": ("speed / bare loop", ".2f"),
    "share_of_matmul_rate": ("share of the matrix-product rate", ".0%"),
    "times_unrouted_activation": ("time routed / unrouted: activation", ".3f"),
    "times_unrouted_parameter": ("parameter", ".3f"),
}
DISTILLATION_COLUMNS = {
    "milliseconds": ("ms", ",.0f"),
    "times_plain": (f"time / {distillation.PLAIN}", ".2f"),
    "peak_megabytes": ("peak MB", ",.0f"),
    "peak_times_plain": (f"peak MB / {distillation.PLAIN}", ".2f"),
    "gradient_difference": ("largest gradient difference", ".0e"),
}
MEMORY_COLUMNS = {
    "measured_megabytes": ("measured MB", ",.0f"),
    "computed_megabytes": ("computed MB", ",.0f"),
    "computed_times_measured": ("computed / measured", ".3f"),
}


def main(command: Benchmark) -> None:
    one_thread()
    at_least(1, repeats=command.repeats)
    with user_input():
        check_device(command.device)
        if command.peers and (command.device != "cpu" or command.runs):
            raise ValueError(
                f"{written('--peers', True)} trains its own learners on the CPU: leave out --device and --runs"
            )
    if command.peers:
        peers.main(command.repeats, command.json)
        return
    if command.device == "cuda":
        accelerator.main(command.device, command.minutes)
        return
    with user_input():
        compared = [learning.steps_to_target(run) for run in command.runs]
    total = environments.calls(command.repeats) + len(training.UPDATES) * training.calls(command.repeats)
    total += training.calls_parallel_seeds(command.repeats) + routing.calls(command.repeats)
    total += language.calls(command.repeats) + distillation.calls(command.repeats)
    total += memory.calls()
    with progress_display(unit="measurements") as progress:
        task = progress.add_task("benchmark", total=total)

        def tick() -> None:
            progress.advance(task)

        results: dict[str, Any] = {"machine": machine(), "environments": _environments(command.repeats, tick)}
        results["training"] = {
            name: _training(name, PRESETS[name].learner, command.repeats, tick) for name in training.UPDATES
        }
        results["parallel_seeds"] = training.measure_parallel_seeds(command.repeats, tick)
        results["routing"] = routing.measure(command.repeats, tick)
        results["language"] = language.measure(command.repeats, tick)
        results["distillation"] = distillation.measure(command.repeats, tick)
        results["memory"] = memory.measure(tick)
        results["learning"] = compared
    if command.json:
        print(json.dumps(results, indent=2))
    else:
        _show(results)


def _environments(repeats: int, tick: Any) -> dict[str, Any]:
    measured = environments.measure(repeats, tick)
    slowest = measured[f"{environments.MINIGRID}, one environment"]
    return {name: {**row, "times_minigrid": slowest.median / row["median"]} for name, row in as_json(measured).items()}


def _training(name: Any, learner: Learner, repeats: int, tick: Any) -> dict[str, Any]:
    measured = training.measure(name, repeats, tick)
    steps = learner.n_envs * learner.n_steps
    compiled = measured.get(COMPILED)
    return {
        "seconds_per_update": as_json(measured),
        "steps_per_second": steps * measured[OURS].rate,
        "steps_per_second_on_gpu": training.steps_per_second_on_gpu(name, repeats),
        "steps_per_second_stable_baselines3": steps * measured[PEER].rate,
        "times_stable_baselines3": measured[PEER].median / measured[OURS].median,
        "times_compiled": measured[OURS].median / compiled.median if compiled else None,
        "roofline_share": measured[PRODUCTS].median / measured[OURS].median,
        "roofline_share_compiled": measured[PRODUCTS].median / compiled.median if compiled else None,
        "times_unrouted": measured[OURS].median / measured[UNROUTED].median,
        "parts": training.parts(name),
    }


def _show(results: dict[str, Any]) -> None:
    made = results["machine"]
    print(
        f"{made['processor']}, {made['cores']} cores, load average {made['load_average']}, {made['threads']} thread; "
        f"torch {made['torch']}, stable-baselines3 {made['stable-baselines3']}, commit {made['git_commit']}"
    )
    rows = [
        [name, f"{row['per_second']:,.0f}", f"{row['times_minigrid']:,.1f}"]
        for name, row in results["environments"].items()
    ]
    show_table("Environment steps per second", ("environment", "steps/s", "speed / MiniGrid"), rows)

    lines = {
        "steps/s": ("steps_per_second", "{:,.0f}"),
        "steps/s of Stable-Baselines3 PPO": ("steps_per_second_stable_baselines3", "{:,.0f}"),
        "speed / Stable-Baselines3 PPO": ("times_stable_baselines3", "{:.2f}"),
        "speed compiled / speed": ("times_compiled", "{:.2f}"),
        "share of the time in matrix products": ("roofline_share", "{:.0%}"),
        "the same, compiled": ("roofline_share_compiled", "{:.0%}"),
        "time / time without routing": ("times_unrouted", "{:.3f}"),
        "steps/s on a GPU": ("steps_per_second_on_gpu", "{:,.0f}"),
    }
    trained = results["training"].values()
    rows = [
        [line, *("not measured" if row[key] is None else form.format(row[key]) for row in trained)]
        for line, (key, form) in lines.items()
    ]
    show_table("Training an agent", ("preset", *results["training"]), rows)

    rows = []
    for device, numbers in training.SEEDS.items():
        rates = results["parallel_seeds"].get(device, {})
        for seeds in numbers:
            rows.append([device, str(seeds), f"{rates[seeds]:,.0f}" if seeds in rates else "not measured"])
    show_table("Seeds trained as one batch (preset quick)", ("device", "seeds", "steps/s, sum over seeds"), rows)

    title = "Routing in a stack of transformer blocks, forward and backward"
    _show_measures(title, "routing", ROUTING_COLUMNS, results["routing"])
    _show_measures("Training a language model", "preset", LANGUAGE_COLUMNS, results["language"])
    title = f"One distillation step, vocabulary of {distillation.VOCABULARY:,} tokens"
    _show_measures(title, "loss", DISTILLATION_COLUMNS, results["distillation"])
    title = "Peak memory of unlearning, model of 0.1 B parameters in float32"
    _show_measures(title, "stage", MEMORY_COLUMNS, results["memory"])

    parts = dict.fromkeys(part for row in trained for part in row["parts"])
    rows = [[part, *(f"{row['parts'].get(part, 0):.0%}" for row in trained)] for part in parts]
    show_table("Share of the time of an update, by part", ("part", *results["training"]), rows)

    rows = []
    for row in results["learning"]:
        steps, seconds = (("not reached" if v is None else f"{v:,.0f}") for v in (row["env_steps"], row["seconds"]))
        rows.append([row["run"], f"{row['oversight']:.0%}", steps, seconds])
    rows = rows or [["not measured; name run directories with --runs", "", "", ""]]
    title = f"Time to a true return of {learning.TARGET:.2f}, steered to Diamond"
    show_table(title, ("run", "oversight level", "steps", "seconds"), rows)


def _show_measures(
    title: str, first: str, columns: Mapping[str, tuple[str, str]], results: Mapping[str, Mapping[str, float]]
) -> None:
    """Print a row per name in the results.

    Args:
        columns: heading and format of each measure.
    """
    rows = [[name, *(f"{row[key]:{form}}" for key, (_, form) in columns.items())] for name, row in results.items()]
    show_table(title, (first, *(heading for heading, _ in columns.values())), rows)
