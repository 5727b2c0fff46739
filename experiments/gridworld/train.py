"""``routed-rl train``: trains one run in its directory, or several seeds as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from routed_rl.errors import UserError, at_least
from routed_rl.experiments.common.agents.options import PRESETS, Train
from routed_rl.experiments.common.agents.worlds import task_of
from routed_rl.experiments.common.display import show_table
from routed_rl.options.oversight import Run
from routed_rl.rl.oversight_study.training import train_runs


def main(command: Train) -> None:
    at_least(1, total_steps=command.total_steps, parallel_seeds=command.parallel_seeds)
    numbers = range(command.seed, command.seed + command.parallel_seeds)
    outs = {seed: None if command.out is None else command.out / f"s{seed}" for seed in numbers}
    if command.parallel_seeds == 1:
        outs = {command.seed: command.out}
    train_and_show([replace(command, seed=seed, out=out) for seed, out in outs.items()])


def train_and_show(commands: Sequence[Train]) -> None:
    """Train runs as one batch and print their results."""
    train_runs([_of_own(command) if command.env else command for command in commands], task_of, _show)


def _of_own(command: Train) -> Run:
    """The same run without the options of this project's worlds, which an environment of the user's own has not."""
    usual = PRESETS["own"]
    names = {field.name for field in fields(Run)}
    for field in fields(Train):
        if field.name not in names and getattr(command, field.name) != getattr(usual, field.name):
            option = f"--{field.name.replace('_', '-')}"
            raise UserError(
                f"{option} {getattr(command, field.name)} does not go with --env {command.env}: leave it out"
            )
    return Run(**{name: getattr(command, name) for name in names})


def _show(title: str, policies: Mapping[str, Any]) -> None:
    """Print results by policy: true return of sampled and greedy actions, ends of episodes, episode length."""
    rows = [
        [
            name,
            f"{result['true_return']:.3f}",
            f"{result['greedy']['true_return']:.3f}",
            ", ".join(f"{outcome} {share:.0%}" for outcome, share in result["outcomes"].items() if share >= 0.005),
            f"{result['episode_length']:.1f}",
        ]
        for name, result in policies.items()
    ]
    header = ("policy", "true return", "greedy true return", "episodes end on", "steps per episode")
    show_table(title, header, rows, left=(0, 3))
