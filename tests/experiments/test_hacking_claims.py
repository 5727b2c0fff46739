"""The numbers of docs/results/hacking.md, trained again; continued where it was stopped."""

import os
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from routed_rl.experiments import cli

ROOT = Path(__file__).parents[2]
RUNS = Path(os.environ.get("ROUTED_RL_CHECK_RUNS", ROOT / "runs" / "check"))
EXPECTED = tomllib.loads((ROOT / "experiments" / "hacking" / "hacking.toml").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("world", EXPECTED)
def test_the_rates_are_those_that_are_published(world):
    row, out = EXPECTED[world], RUNS / f"hacking-{world}"
    cli.main(["hacking", *row["command"].split(), "--out", str(out)])
    means = pd.read_csv(out / "results.csv").groupby(["world", "method", "oversight"]).mean(numeric_only=True)
    for case, expected in row["means"].items():
        method, share, measure = case.split(" ")
        found = means.loc[(world, method, float(share)), measure]
        assert found == pytest.approx(expected["mean"], abs=expected["tolerance"]), case
