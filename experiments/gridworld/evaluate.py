"""``routed-rl evaluate``: the true return of a trained agent in new environments, and where its episodes end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from routed_rl.errors import at_least, user_input
from routed_rl.experiments.common.display import show_table
from routed_rl.experiments.gridworld.options import Evaluate
from routed_rl.experiments.gridworld.steering import open_agent, steer
from routed_rl.rl import evaluate
from routed_rl.rl.evaluation import Metric
from routed_rl.runs import derive_seed
from routed_rl.runs.process import one_thread


def main(command: Evaluate) -> None:
    one_thread()
    if command.n_envs is not None:
        at_least(1, n_envs=command.n_envs)
    with user_input():
        model, task, _ = open_agent(command)
        name = steer(model, command)
    env = task.test_env(command.n_envs or task.fresh[1])
    result = evaluate(
        model,
        env,
        **task.measure(env),
        seed=derive_seed(command.seed, "evaluation"),
        deterministic=command.greedy,
    )
    if command.json:
        print(json.dumps({"policy": name, "greedy": command.greedy, **result}, indent=2))
    else:
        actions = "greedy" if command.greedy else "sampled"
        show_table(
            f"{command.directory}, policy: {name}, {actions} actions",
            ("measure", "value"),
            list(_rows(result, task.metric)),
        )


def _rows(result: dict[str, Any], metric: Metric) -> Iterator[tuple[str, str]]:
    measures = {
        "true_return": f"true return ({'of the paper, 32 steps' if metric == 'paper' else 'discounted'})",
        "episode_return": "episode return (not discounted)",
        "episode_length": "episode length (steps)",
        "entropy": "entropy of the policy (nats)",
    }
    for name, measure in measures.items():
        yield measure, f"{result[name]:.3f}"
    for outcome, share in result["outcomes"].items():
        if outcome == "none":
            yield "episodes that reach no terminal state", f"{share:.1%}"
        else:
            yield f"episodes that end on {outcome}", f"{share:.1%}"
            yield f"episodes that end on {outcome}, overseen", f"{result['outcomes_overseen'][outcome]:.1%}"
