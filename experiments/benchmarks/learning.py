"""Environment steps and seconds that a run needs to reach a given return when steered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from routed_rl.rl.oversight_study.table import learning_curve
from routed_rl.runs import read_metrics, read_run

TARGET = 0.50


def steps_to_target(run: Path, policy: str = "steer:diamond") -> dict[str, Any]:
    """Environment steps and seconds to the first point of the learning curve at or above :data:`TARGET`.

    Both are None if no point reaches the target. The seconds count from the last start of the run. Raises the errors
    of ``learning_curve``.
    """
    config = read_run(run).config
    reached = next((steps for steps, value in learning_curve(run, policy) if value >= TARGET), None)
    timings = read_metrics(run / "timings.csv")
    seconds = [row["time/time_elapsed"] for row in timings if row["env_steps"] == reached]
    return {
        "run": str(run),
        "preset": config["preset"],
        "oversight": config["oversight"],
        "env_steps": reached,
        "seconds": seconds[0] if seconds else None,
    }
