"""``routed-rl evaluate``: the true return of a trained agent in new environments, and where its episodes end."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from routed_rl.errors import at_least, user_input
from routed_rl.experiments.common.agents.recipe import FRESH_ENVS, load_run, make_env
from routed_rl.experiments.gridworld.options import Evaluate
from routed_rl.experiments.gridworld.steering import steer
from routed_rl.rl import evaluate
from routed_rl.runs import derive_seed
from routed_rl.runs.process import one_thread


def main(command: Evaluate) -> None:
    one_thread()
    if command.n_envs is not None:
        at_least(1, n_envs=command.n_envs)
    with user_input():
        model, config = load_run(command.directory)
        name = steer(model, command)
    result = evaluate(
        model.policy,
        make_env(config, command.n_envs or FRESH_ENVS[config["world"]][1], test=True),
        model.overseer.outcomes,
        seed=derive_seed(command.seed, "evaluation"),
        deterministic=command.greedy,
    )
    if command.json:
        print(json.dumps({"policy": name, "greedy": command.greedy, **result}, indent=2))
    else:
        Console().print(_table(f"{command.directory}, policy: {name}", result))


def _table(title: str, result: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    measures = {
        "true_return": "true return (discounted)",
        "episode_return": "episode return (not discounted)",
        "episode_length": "episode length (steps)",
        "entropy": "entropy of the policy (nats)",
    }
    for name, measure in measures.items():
        table.add_row(measure, f"{result[name]:.3f}")
    for outcome, share in result["outcomes"].items():
        if outcome == "none":
            table.add_row("episodes that reach no terminal state", f"{share:.1%}")
        else:
            table.add_row(f"episodes that end on {outcome}", f"{share:.1%}")
            table.add_row(f"episodes that end on {outcome}, overseen", f"{result['outcomes_overseen'][outcome]:.1%}")
    return table
