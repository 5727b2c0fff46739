"""The published rows, trained again: minutes to hours, run by `make check`, continued where it was stopped.

Each `.toml` in the folders of the gridworld and of the oversight study holds rows. A row has the options of the train
command, the seeds, what a seed cost, the mean true return that was measured for each policy, and how far another run
may be from it. `make check` trains the rows of the `quick` preset. `ROUTED_RL_CHECK=all` adds those that take hours.
"""

import os
import tomllib
from pathlib import Path

import pytest
import tyro

from routed_rl.experiments.cli import commands
from routed_rl.experiments.common.agents.grid import train_all
from routed_rl.runs import read_json, read_metrics

ROOT = Path(__file__).parents[2]
ROWS = {
    f"{path.stem}/{name}": row
    for folder in ("gridworld", "oversight")
    for path in sorted((ROOT / "experiments" / folder).glob("*.toml"))
    for name, row in tomllib.loads(path.read_text()).items()
}
RUNS = Path(os.environ.get("ROUTED_RL_CHECK_RUNS", ROOT / "runs" / "check"))
assert ROWS
LONG = 5.0
"""Minutes a seed may take for its row to be trained by default."""


def trains(name, row):
    """Every seed of a row, as the command would have it."""
    preset = row["command"].partition("--preset ")[2].split(" ")[0] or "quick"
    for seed in row["seeds"]:
        out = RUNS / f"{name.replace('/', '-')}-s{seed}"
        line = ["train", *row["command"].split(), "--seed", str(seed), "--out", str(out)]
        yield tyro.cli(commands(preset), args=line)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_whole(name):
    """Without training: its command is one, and it says what it costs and within what bounds it must come out."""
    row = ROWS[name]
    needed = {"command", "seeds", "minutes", "true_return"}
    assert needed <= set(row) <= needed | {"peak", "diamond_share"}
    assert len(set(row["seeds"])) == len(row["seeds"]) >= 2 and row["minutes"] > 0
    assert next(trains(name, row)).seed == row["seeds"][0]
    assert row["true_return"]
    assert all(-1 <= value["mean"] <= 1 and value["tolerance"] > 0 for value in row["true_return"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    row = ROWS[name]
    if row["minutes"] > LONG and os.environ.get("ROUTED_RL_CHECK") != "all":
        pytest.skip(f"takes {row['minutes']} minutes a seed; ROUTED_RL_CHECK=all trains it too")
    runs = list(trains(name, row))
    assert not train_all(runs, os.cpu_count() or 1)
    results = [read_json(run.out / "evaluation.json")["policies"] for run in runs]
    for policy, expected in row["true_return"].items():
        returns = [result[policy]["true_return"] for result in results]
        mean = sum(returns) / len(returns)
        assert mean == pytest.approx(expected["mean"], abs=expected["tolerance"]), (policy, returns)
    for run in runs if "peak" in row else ():
        curve = [r["eval/unsteered"] for r in read_metrics(run.out / "metrics.csv") if "eval/unsteered" in r]
        assert max(curve) >= row["peak"], f"{run.out}: peak {max(curve)}"
    for policy, (low, high) in row.get("diamond_share", {}).items():
        for run, result in zip(runs, results, strict=True):
            ends = result[policy]["outcomes"]
            share = ends["diamond"] / (ends["diamond"] + ends["ghost"])
            assert low <= share <= high, f"{run.out}, {policy}: {share}"
