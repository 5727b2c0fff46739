"""``routed-rl train --extends RUN``: a finished run is trained on, as if it had been longer from the beginning."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from routed_rl.experiments import cli
from routed_rl.experiments.common.agents import worlds
from routed_rl.options.oversight import OWN, Run
from routed_rl.rl import RoutedPPO, evaluation
from routed_rl.rl.oversight_study.grid import run_config
from routed_rl.runs import RunDirectory, read_checkpoint
from tests.experiments.test_train import SMALL, different_files
from tests.own_code import own_code

CONSTANT = [*SMALL, "--max-steps", "8", "--learner.entropy", "0.02", "0.02"]
"""Entropy that does not depend on the length of the training."""
CARTPOLE = ["--world", "CartPole", "--learner.n-envs", "2", "--learner.n-steps", "8", "--learner.batch-size", "16"]
CARTPOLE += ["--learner.replay-steps", "1", "--learner.hidden", "8"]


@pytest.fixture(autouse=True)
def few_test_environments(monkeypatch):
    monkeypatch.setitem(worlds.FRESH_ENVS, "gridworld", (2, 4))
    monkeypatch.setitem(worlds.FRESH_ENVS, "CartPole", (2, 4))
    monkeypatch.setattr(evaluation, "PAPER_STEPS", 8)


def train(out, steps, *options, small=CONSTANT):
    cli.main(["train", "--out", str(out), "--total-steps", str(steps), *small, *map(str, options)])


def result(run):
    return json.loads((run / "evaluation.json").read_text())


def test_the_same_agent_as_of_a_longer_run(tmp_path, monkeypatch):
    """Also as the extension is stopped when it has taken over the agent, and again at a checkpoint."""
    monkeypatch.setattr("routed_rl.rl.oversight_study.training.CHECKPOINT_EVERY", 3)
    half, longer, whole = (tmp_path / name for name in ("half", "longer", "whole"))
    train(half, 1024)
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    save, saved = RunDirectory.save_checkpoint, []

    def stopped(self, step, *arguments):
        save(self, step, *arguments)
        if step not in saved and len(saved) < 2:
            saved.append(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "save_checkpoint", stopped)
    for _ in range(2):
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(longer, 2048, "--extends", half)
    train(longer, 2048, "--extends", half)
    assert saved == [1024, 1152]
    train(whole, 2048)
    assert different_files(longer / "model", whole / "model") == []
    assert result(longer)["policies"] == result(whole)["policies"] and result(longer)["env_steps"] == 2048
    assert result(longer)["config_hash"] != result(whole)["config_hash"]
    assert before == {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    train(tmp_path / "longest", 2560, "--extends", longer)
    assert result(tmp_path / "longest")["env_steps"] == 2560


def test_in_an_environment_whose_state_is_unknown_other_episodes_begin(tmp_path, monkeypatch):
    """They are not those with which the first run began, and the same ones whenever the extension is trained."""
    train(tmp_path / "half", 128, small=CARTPOLE)
    weights = read_checkpoint(tmp_path / "half" / "model").tensors
    monkeypatch.setattr(RoutedPPO, "learn", lambda model, *_, **__: seen.append((model, model.env.reset())))
    seen = []
    for name in ("longer", "again"):
        train(tmp_path / name, 256, "--extends", tmp_path / "half", small=CARTPOLE)
    train(tmp_path / "new", 256, small=CARTPOLE)
    (longer, start), (_, again), (_, new) = seen
    assert np.array_equal(start, again) and not np.array_equal(start, new)
    assert longer.num_timesteps == 128
    assert all(torch.equal(t, weights[f"policy.{name}"]) for name, t in longer.policy.state_dict().items())


def test_values_of_outcomes_may_be_written_otherwise(tmp_path):
    """As a study writes them, a run of which is extended."""
    with own_code(tmp_path) as write:
        write("doors.py", "from tests.rl.worlds import TwoDoors as make_env")
        env = f"{tmp_path}/doors:make_env"
        learner = replace(OWN, n_envs=2, n_steps=8, batch_size=16, replay_steps=1, hidden=8)
        config = run_config(Run(env=env, outcomes=("bad=-1.0", "good=1.0"), total_steps=16, learner=learner))
        for number in ("-1", "-1.00", "-1e0"):
            run = Run(env=env, outcomes=(f"bad={number}", "good=1"), total_steps=16, learner=learner)
            assert run_config(run) == config


def test_what_cannot_be_extended_is_refused(tmp_path, capsys):
    finished, stopped, open_run, out = (tmp_path / name for name in ("finished", "stopped", "open", "out"))
    train(finished, 256)
    train(stopped, 256, "--method", "naive-early-stopped")
    train(open_run, 256)
    (open_run / "evaluation.json").unlink()
    for run, options, said in [
        (finished, ["--seed", "1"], "seed is 0 there, 1 here"),
        (finished, ["--oversight", "0.2"], "config.oversight is 0.05 there, 0.2 here"),
        (finished, ["--total-steps", "256"], f"--total-steps must be above 256, the steps of '{finished}', got 256"),
        (stopped, ["--method", "naive-early-stopped"], "keeps its best agent, not its last"),
        (open_run, [], f"'{open_run}' is not finished: its own command continues it"),
        (finished, ["--out", finished], f"must be different directories, got '{finished}' for both"),
        (finished, ["--total-steps", "250"], "--total-steps must be above 256"),
        (tmp_path / "nothing", [], f"there is no run at '{tmp_path / 'nothing'}'"),
        (finished, ["--parallel-seeds", "2"], "--extends continues one run; leave out --parallel-seeds"),
    ]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train(out, 512, "--extends", run, *options)
        assert stop.value.code == 2 and said in capsys.readouterr().err and not out.exists()
