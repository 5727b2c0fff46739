"""The published rows, trained again: minutes to an hour, run by `make check`, continued where it was stopped.

`experiments/expected_gridworld.json` holds, for each row, the options of the train command, the seeds, and the
mean true return per policy that was measured, with the tolerance that another run of it must keep.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from routed_rl.runs import read_json, read_metrics, run_commands

ROOT = Path(__file__).parents[2]
EXPECTED = json.loads((ROOT / "experiments" / "expected_gridworld.json").read_text())
RUNS = Path(os.environ.get("ROUTED_RL_CHECK_RUNS", ROOT / "runs" / "check"))

pytestmark = pytest.mark.slow


def train_all(name, row):
    """Every seed of a row, two at a time; finished ones are not trained again."""
    outs = [RUNS / f"{name}-s{seed}" for seed in row["seeds"]]
    RUNS.mkdir(parents=True, exist_ok=True)
    commands = [
        [
            sys.executable,
            "-P",
            "-m",
            "experiments.cli",
            "train",
            *row["options"],
            "--seed",
            str(seed),
            "--out",
            str(out),
        ]
        for seed, out in zip(row["seeds"], outs, strict=True)
    ]
    codes = run_commands(commands, os.cpu_count() or 1, [out.with_suffix(".log") for out in outs])
    assert codes == [0] * len(codes), f"see the logs beside {outs[0]}"
    return outs


@pytest.mark.parametrize("name", EXPECTED)
def test_row(name):
    row = EXPECTED[name]
    outs = train_all(name, row)
    results = [read_json(out / "evaluation.json")["policies"] for out in outs]
    for policy, expected in row["true_return"].items():
        returns = [result[policy]["true_return"] for result in results]
        mean = sum(returns) / len(returns)
        assert mean == pytest.approx(expected["mean"], abs=expected["tolerance"]), (policy, returns)
    if "peak" in row:
        for out in outs:
            curve = [r["eval/unsteered"] for r in read_metrics(out / "metrics.csv") if "eval/unsteered" in r]
            assert max(curve) >= row["peak"], f"{out}: peak {max(curve)}"
