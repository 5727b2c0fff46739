"""``routed-rl train``: trains one run in its directory, or several seeds as one batch."""

from __future__ import annotations

from dataclasses import replace

from routed_rl.errors import at_least
from routed_rl.experiments.common.agents.options import Train
from routed_rl.experiments.common.agents.training import train_runs


def main(command: Train) -> None:
    at_least(1, total_steps=command.total_steps, parallel_seeds=command.parallel_seeds)
    if command.parallel_seeds == 1:
        train_runs([command])
        return
    numbers = range(command.seed, command.seed + command.parallel_seeds)
    outs = {seed: None if command.out is None else command.out / f"s{seed}" for seed in numbers}
    train_runs([replace(command, seed=seed, out=out) for seed, out in outs.items()])
