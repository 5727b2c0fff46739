"""(d) How many environment steps, and seconds, a run took to a steered return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.gridworld import filtered
from routed_rl.runs import read_metrics, read_run

TARGET = 0.50


def steps_to_target(run: Path, policy: str = "steer:diamond") -> dict[str, Any]:
    """Environment steps and seconds to the first point of the learning curve that is at least :data:`TARGET`.

    Both are None if there is none. Raises RunError if there is no run in the directory.
    """
    config = read_run(run).config
    curve = [row for row in read_metrics(run / "metrics.csv") if f"eval/{policy}" in row]
    reached = next((row["env_steps"] for row in curve if float(row[f"eval/{policy}"]) >= TARGET), None)
    seconds = [row["time/time_elapsed"] for row in read_metrics(run / "timings.csv") if row["env_steps"] == reached]
    return {
        "run": str(run),
        "preset": config["preset"],
        "oversight": config["oversight"],
        "env_steps": None if reached is None else float(reached) / filtered(config),
        "seconds": seconds[0] if seconds else None,
    }
