"""Several runs in one process: each in its own directory, broken off, continued and failing on its own."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch

from routed_rl.experiments import parallel
from routed_rl.experiments.cli import main, parse
from routed_rl.experiments.common.agents import worlds as gridworld
from routed_rl.experiments.common.agents.grid import train_all, train_command
from routed_rl.experiments.common.agents.options import PRESETS
from routed_rl.experiments.gridworld.train import train_and_show
from routed_rl.options.oversight import Learner
from routed_rl.rl import ParallelLearner, evaluation
from routed_rl.rl.oversight_study import training
from routed_rl.rl.oversight_study.grid import _batches
from routed_rl.runs import read_json, read_metrics
from routed_rl.runs.grid import FAILED

LEARNER = Learner(n_envs=16, n_steps=8, batch_size=64, hidden=8, replay_batch=8, replay_steps=2)
TINY = replace(PRESETS["quick"], total_steps=1280, max_steps=8, learner=LEARNER)
"""Ten updates, with checkpoints after every second; learning curves have points after the fourth and the eighth."""
FILES = ("metrics.csv", "evaluation.json", "model/tensors.safetensors")


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gridworld.FRESH_ENVS, "gridworld", (8, 16))
        patch.setattr(evaluation, "PAPER_STEPS", 8)
        patch.setattr(training, "CHECKPOINT_EVERY", 2)
        patch.setattr(training, "EVALUATE_EVERY", 4)
        yield


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """Two runs with routing, never interrupted."""
    out = tmp_path_factory.mktemp("parallel")
    train_and_show(runs(out))
    return out


def assert_same(one, other):
    """Two runs with the same results, to the byte."""
    for seed in ("s0", "s1"):
        for file in FILES:
            assert (one / seed / file).read_bytes() == (other / seed / file).read_bytes(), (seed, file)


def runs(out, n=2, **options):
    return [replace(TINY, seed=seed, out=out / f"s{seed}", **options) for seed in range(n)]


def break_at(monkeypatch, update):
    real, calls = ParallelLearner._train, []

    def broken(self):
        calls.append(1)
        if len(calls) == update:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(ParallelLearner, "_train", broken)


def test_the_command_trains_one_run_for_each_seed(tmp_path, small):
    options = ["--total-steps", "512", "--learner.n-envs", "16", "--learner.batch-size", "64", "--learner.hidden", "8"]
    main(["train", "--parallel-seeds", "2", "--seed", "5", "--out", str(tmp_path / "many"), *options])
    main(["train", "--seed", "6", "--out", str(tmp_path / "one"), *options])
    assert {path.name for path in (tmp_path / "many").iterdir()} == {"s5", "s6"}
    one, other = (read_json(out / "evaluation.json") for out in (tmp_path / "one", tmp_path / "many" / "s6"))
    assert one["config_hash"] == other["config_hash"] and one["seed"] == other["seed"] == 6
    for mine, theirs in zip(*(read_metrics(tmp_path / out / "metrics.csv") for out in ("one", "many/s6")), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        "routing",
        # Run by themselves, these two are tested in test_controls.py.
        pytest.param("placebo", marks=pytest.mark.slow),
        pytest.param("naive-early-stopped", marks=pytest.mark.slow),
    ],
)
def test_broken_off_and_continued_is_the_same(method, whole, tmp_path, monkeypatch):
    if method != "routing":
        whole = tmp_path / "whole"
        train_and_show(runs(whole, method=method))
    with monkeypatch.context() as patch:
        break_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train_and_show(runs(tmp_path / "broken", method=method))
    train_and_show(runs(tmp_path / "broken", method=method))
    assert_same(whole, tmp_path / "broken")


def test_killed_while_it_saves_a_batch_comes_to_the_same_bytes(whole, tmp_path, monkeypatch):
    """One run is then a checkpoint ahead; both go on from the last that both have."""
    real, saved = training.RunDirectory.save_checkpoint, []

    def killed(self, step, *args):
        saved.append(step)
        if len(saved) == 6:
            raise KeyboardInterrupt
        real(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(training.RunDirectory, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train_and_show(runs(tmp_path / "broken"))
    train_and_show(runs(tmp_path / "broken"))
    assert_same(whole, tmp_path / "broken")


def test_new_seeds_join_a_batch_that_was_broken_off(tmp_path, small, monkeypatch):
    with monkeypatch.context() as patch:
        break_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train_and_show(runs(tmp_path))
    train_and_show(runs(tmp_path, 3))
    for run in runs(tmp_path, 3):
        assert read_json(run.out / "evaluation.json")["env_steps"] == 1280
        assert len(read_metrics(run.out / "metrics.csv")) == 10


def test_a_directory_that_cannot_be_used_stops_no_other(tmp_path, small, capsys):
    train_and_show([replace(TINY, seed=9, out=tmp_path / "s1", total_steps=128)])
    with pytest.raises(training.UserError, match="1 of 3 runs failed"):
        train_and_show(runs(tmp_path, 3))
    assert f"{FAILED}{tmp_path / 's1'}: " in capsys.readouterr().err
    assert [read_json(run.out / "evaluation.json")["seed"] for run in runs(tmp_path, 3)] == [0, 9, 2]


@pytest.mark.parametrize("update", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_one_that_diverges_stops_no_other(update, tmp_path, small, monkeypatch, capsys):
    real = training._RunCallback._on_rollout_end

    def poisoned(self):
        if self.run.record.seed == 1 and self.model._n_updates == update:
            with torch.no_grad():
                self.model.policy.value_net.weight.fill_(np.nan)
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(training._RunCallback, "_on_rollout_end", poisoned)
        with pytest.raises(training.UserError, match="1 of 3 runs failed"):
            train_and_show(runs(tmp_path, 3))
    assert f"{FAILED}{tmp_path / 's1'}: training has diverged by step" in capsys.readouterr().err
    assert [(run.out / "evaluation.json").exists() for run in runs(tmp_path, 3)] == [True, False, True]


def test_a_study_puts_runs_that_are_alike_in_one_process(tmp_path):
    def run(seed, **options):
        return replace(TINY, seed=seed, out=tmp_path / f"{len(options)} {seed}", **options)

    alike = [run(0), run(1), run(0, oversight=0.4), run(0, flip_rate=0.2)]
    others = [run(0, method="naive"), run(0, method="oracle-filtered"), run(0, method="oracle-filtered", oversight=0.4)]
    batches = _batches([*others[:2], *alike, *others[2:]], 3)
    assert batches == [others[:1], others[1:2], alike[:3], alike[3:], others[2:]], "in the order of their first runs"
    command = train_command(alike[:3])
    first = command.index("routed_rl.experiments.parallel") + 1
    assert [parse(shlex.split(line)) for line in command[first:]] == alike[:3]


def test_each_failure_is_reported_with_its_own_reason(tmp_path):
    first, second, third = runs(tmp_path, 3)

    def backend(commands, workers, logs, **_):
        (third.out).mkdir()
        (third.out / "evaluation.json").write_text("{}")
        logs[0].write_text(f"{FAILED}{second.out}: it diverged\nrouted-rl: error: 2 of 3 runs failed\n")
        return [2]

    failed = train_all([first, second, third], 1, backend, parallel_seeds=3)
    assert set(failed) == {first.out, second.out}
    assert "it diverged" in failed[second.out] and "2 of 3 runs failed" in failed[first.out]


def test_a_process_of_several_command_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [shlex.join(["train", "--world", "room", "--preset", "minigrid", "--seed", str(seed)]) for seed in (0, 1)]
    with pytest.raises(SystemExit) as refused:
        parallel.main(lines)
    assert refused.value.code == 2 and not (tmp_path / "runs").exists()
    assert "--parallel-seeds needs a batched world, not --world room" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (["--parallel-seeds", "0"], "--parallel-seeds must be at least 1, got 0"),
        (["--parallel-seeds", "2", "--learner.unfinished", "hold"], "leave out --learner.unfinished hold"),
    ],
)
def test_bad_options(options, quoted, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--out", str(tmp_path / "out"), *options])
    assert stop.value.code == 2 and quoted in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
