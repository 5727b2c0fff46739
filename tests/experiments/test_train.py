"""The train command: its contract, and that killing it changes nothing."""

import filecmp
import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from routed_rl.experiments import cli
from routed_rl.experiments.common.agents import worlds
from routed_rl.experiments.common.agents.options import PRESETS
from routed_rl.rl.oversight_study import training
from routed_rl.rl.oversight_study.recipe import budget
from routed_rl.rl.oversight_study.table import learning_curve
from routed_rl.rl.oversight_study.training import curve_interval
from routed_rl.runs.metrics import MetricsCSV
from tests import forks

SMALL = ["--learner.n-envs", "16", "--learner.n-steps", "8", "--learner.batch-size", "64", "--learner.hidden", "8"]
SMALL += ["--learner.replay-steps", "1"]
STEPS = 3_072
"""24 updates, a row of metrics each, and three checkpoints."""
POLICIES = {"steer:ghost", "steer:diamond", "unsteered", "contrast:diamond", "sharpened:diamond"}
MAY_DIFFER = {"timings.csv", "tensorboard"}


def train(arguments, world, death):
    """The command, with few environments in its final evaluation; SIGKILL after so many rows of metrics."""
    training.CHECKPOINT_EVERY = 8
    worlds.FRESH_ENVS[world] = (2, 4)
    append = MetricsCSV.append

    def fatal(self, row):
        append(self, row)
        if (self.path.name, self.rows) == ("metrics.csv", death):
            os.kill(os.getpid(), signal.SIGKILL)

    MetricsCSV.append = fatal
    cli.main(arguments)


def start(out, *options, steps=STEPS, world="gridworld", small=SMALL, death=None):
    """The command in a process of its own."""
    arguments = ["train", "--total-steps", str(steps), "--out", str(out), *small, *options]
    return forks.start(f"{out}.log", train, arguments, world, death)


def run(out, *options, **keywords):
    """The exit code of the command, in a process of its own; negative: the signal that ended it."""
    process = start(out, *options, **keywords)
    process.join()
    return process.exitcode


def different_files(a: Path, b: Path):
    comparison = filecmp.dircmp(a, b, ignore=list(MAY_DIFFER))
    names = comparison.left_only + comparison.right_only
    _, mismatch, errors = filecmp.cmpfiles(a, b, comparison.common_files, shallow=False)
    for folder in comparison.common_dirs:
        names += [f"{folder}/{name}" for name in different_files(a / folder, b / folder)]
    return names + mismatch + errors


def call(capsys, out, *options, steps=STEPS):
    """Exit status, standard output and standard error of the command in this process."""
    try:
        cli.main(["train", "--total-steps", str(steps), "--out", str(out), *SMALL, *options])
        status = 0
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "unbroken"
    assert run(out) == 0, Path(f"{out}.log").read_text()
    return out


def test_evaluation_json_is_as_promised(unbroken):
    result = json.loads((unbroken / "evaluation.json").read_text())
    assert set(result) == {"policies", "method", "oversight", "seed", "env_steps", "config_hash"}
    assert (result["method"], result["oversight"], result["seed"], result["env_steps"]) == (
        "routing",
        0.05,
        0,
        STEPS,
    )
    assert result["config_hash"] == json.loads((unbroken / "config.json").read_text())["config_hash"]
    assert set(result["policies"]) == POLICIES
    fields = {"true_return", "episode_return", "outcomes", "outcomes_overseen", "outcomes_unoverseen"}
    fields |= {"episode_length", "entropy"}
    for name, policy in result["policies"].items():
        control = {"temperature"} if name.startswith("sharpened:") else set()
        assert set(policy) == fields | control | {"greedy", "unwatched_return"} and set(policy["greedy"]) == fields
        assert sum(policy["outcomes"].values()) == pytest.approx(1)
        for outcome, share in policy["outcomes"].items():
            assert policy["outcomes_overseen"][outcome] + policy["outcomes_unoverseen"][outcome] == pytest.approx(share)


@pytest.mark.integration
def test_killed_twice_and_beside_another_run_it_gives_the_same_bytes(unbroken, tmp_path):
    """Another process does the same, not interrupted, while one is killed between checkpoints and continued."""
    beside, out = tmp_path / "beside", tmp_path / "killed"
    process = start(beside)
    assert [run(out, death=rows) for rows in (11, 22)] == [-signal.SIGKILL] * 2
    assert run(out) == 0
    process.join()
    assert process.exitcode == 0
    assert different_files(out, unbroken) == different_files(beside, unbroken) == []


@pytest.mark.slow
def test_twenty_kills_at_random_moments(unbroken, tmp_path):
    """From the first file in the directory to the last: while starting, training, saving and finishing."""
    begun = time.monotonic()
    run(tmp_path / "timed")
    duration = time.monotonic() - begun
    moments, killed = random.Random(0), 0
    while killed < 20:
        out = tmp_path / f"killed-{killed}"
        process = start(out)
        time.sleep(moments.uniform(0, duration))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:  # else it was over already
            killed += 1
        assert run(out) == 0
        assert different_files(out, unbroken) == [], killed


def test_the_same_again_shows_the_result_and_touches_nothing(unbroken, capsys):
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}
    status, shown, said = call(capsys, unbroken)
    assert status == 0 and "steer:diamond" in shown and "finished" in said
    assert before == {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}


def test_another_run_in_the_directory_is_refused_and_force_keeps_it(unbroken, tmp_path, capsys, monkeypatch):
    status, _, refused = call(capsys, unbroken, "--oversight", "0.2")
    assert status == 2 and len(refused.splitlines()) == 1
    assert "oversight" in refused and "0.2" in refused and str(unbroken) in refused
    monkeypatch.setitem(worlds.FRESH_ENVS, "gridworld", (4, 16))
    out = tmp_path / "run"
    assert call(capsys, out, "--method", "naive", steps=256)[0] == 0
    old = (out / "evaluation.json").read_bytes()
    assert call(capsys, out, "--method", "filtering", "--force", steps=256)[0] == 0
    assert (tmp_path / "run.old-1" / "evaluation.json").read_bytes() == old
    result = json.loads((out / "evaluation.json").read_text())
    assert result["method"] == "filtering" and set(result["policies"]) == {"unsteered"}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("world", "options"),
    [
        ("minigrid", ["--preset", "minigrid", "--max-steps", "8"]),
        ("camera", ["--world", "camera"]),
        ("CartPole", ["--world", "CartPole"]),
    ],
)
def test_other_worlds_train_evaluate_and_resume(world, options, tmp_path):
    """The same command in another world, and a kill, which the states of our own environments survive.

    The state of an environment of others is not known. A run in it starts again, and comes to the same bytes.
    """
    small = [*options, "--learner.n-envs", "2", "--learner.n-steps", "8", "--learner.batch-size", "16"]
    small += ["--learner.replay-steps", "1", "--learner.hidden", "8"]
    options = {"steps": 256, "world": world, "small": small}  # 16 updates, a checkpoint in the middle
    outs = [tmp_path / name for name in ("unbroken", "killed")]
    assert run(outs[0], **options) == 0
    assert run(outs[1], death=10, **options) == -signal.SIGKILL
    assert run(outs[1], **options) == 0
    assert different_files(*outs) == []
    result = json.loads((outs[0] / "evaluation.json").read_text())
    assert len(result["policies"]) == len(POLICIES)


# Preset, other options → number of updates, number of points. Those of published results must not change.
PUBLISHED = {
    ("quick",): (244, 31),
    ("quick", ("total_steps", 400_000)): (48, 6),
    ("quick", ("method", "oracle-filtered"), ("oversight", 0.1)): (24, 3),
    ("paper",): (20_000, 200),
    ("paper", ("total_steps", 32_768_000)): (2_000, 200),
    ("paper", ("method", "oracle-filtered"), ("oversight", 0.1)): (2_000, 200),
    ("minigrid",): (488, 61),
    ("minigrid", ("total_steps", 300_000)): (146, 19),
    ("own",): (146, 19),
    ("own", ("total_steps", 100_000)): (48, 6),
}
SHORT = {
    ("quick", ("total_steps", 64)): (0, 1),
    ("quick", ("total_steps", 8192)): (1, 1),
    ("quick", ("total_steps", 5 * 8192)): (5, 5),
    ("own", ("total_steps", 20_000)): (9, 9),
    ("own", ("total_steps", 30_000)): (14, 7),
    ("own", ("total_steps", 96_000)): (46, 7),
    ("own", ("method", "oracle-filtered"), ("oversight", 0.1)): (14, 4),
    ("quick", ("method", "oracle-filtered"), ("oversight", 0.01)): (2, 2),
}


@pytest.mark.parametrize(("options", "expected"), [*PUBLISHED.items(), *SHORT.items()])
def test_a_curve_has_several_points_whatever_the_budget(options, expected):
    preset, *others = options
    config = replace(PRESETS[preset], **dict(others)).config()
    updates = budget(config) // (config["learner"]["n_envs"] * config["learner"]["n_steps"])
    assert (updates, len(range(0, max(updates, 1), curve_interval(config)))) == expected
    usual = max(8, updates // 200)
    assert curve_interval(config) == usual if options in PUBLISHED else curve_interval(config) < usual


def test_every_budget_has_points_enough():
    for updates in range(1, 1000):
        config = replace(PRESETS["own"], total_steps=updates * 16 * 128).config()
        points = len(range(0, updates, curve_interval(config)))
        assert points == updates if updates < 6 else 6 <= points <= 200


def test_a_short_run_has_a_curve(tmp_path, monkeypatch):
    monkeypatch.setitem(worlds.FRESH_ENVS, "gridworld", (2, 4))
    cli.main(["train", "--total-steps", str(3 * 128), "--out", str(tmp_path / "run"), *SMALL])
    assert [steps for steps, _ in learning_curve(tmp_path / "run")] == [128, 256, 384]
