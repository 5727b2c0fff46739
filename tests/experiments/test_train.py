"""The train command: its contract, and that killing it changes nothing."""

import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = [
    "--learner.n-envs",
    "16",
    "--learner.n-steps",
    "16",
    "--learner.batch-size",
    "128",
    "--learner.hidden",
    "8",
]
POLICIES = {"steer:ghost", "steer:diamond", "unsteered", "contrast:diamond", "sharpened:diamond"}
MAY_DIFFER = {"timings.csv", "tensorboard"}


def command(out, *options, steps=16_384):
    train = [
        sys.executable,
        "-P",
        "-m",
        "routed_rl.experiments.cli",
        "train",
        "--total-steps",
        str(steps),
        "--out",
        str(out),
    ]
    return [*train, *SMALL, *options]


def run(out, *options, **keywords):
    return subprocess.run(command(out, *options, **keywords), capture_output=True, text=True)


def different_files(a: Path, b: Path):
    comparison = filecmp.dircmp(a, b, ignore=list(MAY_DIFFER))
    names = comparison.left_only + comparison.right_only
    _, mismatch, errors = filecmp.cmpfiles(a, b, comparison.common_files, shallow=False)
    for folder in comparison.common_dirs:
        names += [f"{folder}/{name}" for name in different_files(a / folder, b / folder)]
    return names + mismatch + errors


def kill_after(out, rows):
    """Start the command and SIGKILL it once its metrics have so many rows; false if it was done before that."""
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = out / "metrics.csv"
    while process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") > rows:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.001)
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "unbroken"
    done = run(out)
    assert done.returncode == 0, done.stderr
    return out


def test_evaluation_json_is_as_promised(unbroken):
    result = json.loads((unbroken / "evaluation.json").read_text())
    assert set(result) == {"policies", "method", "oversight", "seed", "env_steps", "config_hash"}
    assert (result["method"], result["oversight"], result["seed"], result["env_steps"]) == (
        "routing",
        0.05,
        0,
        16_384,
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


def test_killed_twice_and_continued_gives_the_same_bytes(unbroken, tmp_path):
    out = tmp_path / "killed"
    assert kill_after(out, rows=20) and kill_after(out, rows=45)
    assert run(out).returncode == 0
    assert different_files(out, unbroken) == []


def test_the_same_command_beside_other_load_gives_the_same_bytes(unbroken, tmp_path):
    outs = [tmp_path / name for name in "ab"]
    processes = [subprocess.Popen(command(out), stdout=subprocess.DEVNULL) for out in outs]
    assert [process.wait() for process in processes] == [0, 0]
    assert [different_files(out, unbroken) for out in outs] == [[], []]


@pytest.mark.slow
def test_twenty_kills_at_random_moments(unbroken, tmp_path):
    """From the first file in the directory to the last: while starting, training, saving and finishing."""
    start = time.monotonic()
    run(tmp_path / "timed")
    duration = time.monotonic() - start
    moments, killed = random.Random(0), 0
    while killed < 20:
        out = tmp_path / f"killed-{killed}"
        process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0, duration))
        process.kill()
        if process.wait() == -signal.SIGKILL:  # else it was over already
            killed += 1
        assert run(out).returncode == 0
        assert different_files(out, unbroken) == [], killed


def test_the_same_again_shows_the_result_and_touches_nothing(unbroken):
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}
    again = run(unbroken)
    assert again.returncode == 0 and "steer:diamond" in again.stdout and "finished" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}


def test_another_run_in_the_directory_is_refused_and_force_keeps_it(unbroken, tmp_path):
    refused = run(unbroken, "--oversight", "0.2")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "oversight" in refused.stderr and "0.2" in refused.stderr and str(unbroken) in refused.stderr
    out = tmp_path / "run"
    assert run(out, "--method", "naive", steps=256).returncode == 0
    old = (out / "evaluation.json").read_bytes()
    assert run(out, "--method", "filtering", "--force", steps=256).returncode == 0
    assert (tmp_path / "run.old-1" / "evaluation.json").read_bytes() == old
    result = json.loads((out / "evaluation.json").read_text())
    assert result["method"] == "filtering" and set(result["policies"]) == {"unsteered"}


def test_minigrid_trains_evaluates_and_resumes(tmp_path, monkeypatch):
    """The same command on MiniGrid, and a kill, which the environments' states survive."""
    small = ["--preset", "minigrid", "--learner.n-envs", "2", "--learner.n-steps", "8", "--learner.batch-size", "16"]
    small += ["--learner.replay-steps", "1", "--learner.hidden", "8", "--max-steps", "8"]
    train = [sys.executable, "-P", "-c", "from routed_rl.experiments.common.agents import recipe as g; "]
    train[-1] += "g.FRESH_ENVS['minigrid'] = (2, 4); from routed_rl.experiments.cli import main; main()"
    outs = [tmp_path / name for name in ("unbroken", "killed")]
    commands = [[*train, "train", *small, "--total-steps", "1280", "--out", str(out)] for out in outs]
    assert subprocess.run(commands[0], capture_output=True).returncode == 0
    process = subprocess.Popen(commands[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = outs[1] / "metrics.csv"
    while process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") > 40:
            process.kill()
        time.sleep(0.001)
    assert process.returncode == -signal.SIGKILL
    assert subprocess.run(commands[1], capture_output=True).returncode == 0
    assert different_files(*outs) == []
    result = json.loads((outs[0] / "evaluation.json").read_text())
    assert set(result["policies"]) == POLICIES
