"""Controls: the placebo says nothing of outcomes, early stopping sees what a supervisor sees, entropy is matched."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.experiments.cli import main
from routed_rl.experiments.common.agents import worlds as gridworld
from routed_rl.experiments.common.agents.options import Train
from routed_rl.experiments.common.agents.placebo import PlaceboVecEnv
from routed_rl.experiments.common.agents.tampering import TamperingVecEnv
from routed_rl.rl import RoutedPPO, evaluate
from routed_rl.rl.oversight_study.recipe import matching_temperature, policies
from routed_rl.rl.oversight_study.training import LABELS, SCORE
from routed_rl.runs import read_json, read_metrics

SMALL = ["--learner.n-envs", "16", "--learner.n-steps", "8", "--learner.hidden", "8", "--total-steps", "4096"]


@pytest.fixture(autouse=True)
def few_fresh_environments(monkeypatch):
    monkeypatch.setitem(gridworld.FRESH_ENVS, "gridworld", (64, 64))


def test_a_placebo_is_the_parity_of_the_start():
    plain, placebo = DiamondGhostVecEnv(50, seed=0), PlaceboVecEnv(DiamondGhostVecEnv(50, seed=0))
    start = plain.reset()[:, :25].argmax(axis=1)
    placebo.reset()
    rng, seen = np.random.default_rng(0), []
    for step in range(150):
        actions = rng.integers(4, size=50)
        obs, rewards, dones, infos = plain.step(actions)
        again = placebo.step(actions)
        for a, b in zip((obs, rewards, dones), again, strict=False):
            np.testing.assert_array_equal(a, b)
        ends, told = infos.ends, again[3].ends
        reached = ends.outcome >= 0
        assert (told.outcome[~reached] == -1).all()
        assert (told.outcome[reached] == start[ends.rows][reached] % 2).all()
        assert (told.overseen == ends.overseen).all() and again[3].outcome_names == infos.outcome_names
        seen += zip(ends.outcome[reached], told.outcome[reached], strict=True)
        start[ends.rows] = obs[ends.rows, :25].argmax(axis=1)
        if step == 75:
            fresh = PlaceboVecEnv(DiamondGhostVecEnv(50))
            fresh.set_state(placebo.get_state())
            placebo = fresh
    outcome, label = np.array(seen).T
    assert len(outcome) > 300 and abs(np.corrcoef(outcome, label)[0, 1]) < 0.15


def test_tampering_masks_unwatched_ghosts_and_changes_nothing_else():
    plain, tampered = DiamondGhostVecEnv(50, seed=0), TamperingVecEnv(DiamondGhostVecEnv(50, seed=0))
    np.testing.assert_array_equal(plain.reset(), tampered.reset())
    rng, masked = np.random.default_rng(0), 0
    for step in range(150):
        actions = rng.integers(4, size=50)
        *same, infos = plain.step(actions)
        *again, told = tampered.step(actions)
        for a, b in zip(same, again, strict=True):
            np.testing.assert_array_equal(a, b)
        for name in ("rows", "outcome", "overseen", "truncated"):
            np.testing.assert_array_equal(getattr(told.ends, name), getattr(infos.ends, name))
        true, shown = (ends.final_obs.reshape(-1, 4, 25) for ends in (infos.ends, told.ends))
        hidden = (infos.ends.outcome == 0) & ~infos.ends.overseen
        np.testing.assert_array_equal(shown[~hidden], true[~hidden])
        np.testing.assert_array_equal(shown[hidden], true[hidden][:, [0, 2, 1, 3]])
        masked += hidden.sum()
        if step == 75:
            fresh = TamperingVecEnv(DiamondGhostVecEnv(50))
            fresh.set_state(tampered.get_state())
            tampered = fresh
    assert masked > 100


def test_worlds_that_fool_an_outcome_model():
    config = Train(oversight=0.3).config()
    model = gridworld.make_model({**config, "world": "tampering"}, 0)
    assert isinstance(model.env, TamperingVecEnv)
    assert isinstance(gridworld.make_env({**config, "world": "tampering"}, 1, test=True), DiamondGhostVecEnv)
    world = gridworld.world_of(gridworld.make_env({**config, "world": "unseen"}, 1))
    assert dict(zip(world.names, world.oversight, strict=True)) == {"ghost": 0.3, "trap": 0.0, "diamond": 0.3}


def test_camera_pays_for_boxes_in_training_and_for_performance_in_tests():
    config = Train(oversight=0.3, world="camera").config()
    model = gridworld.make_model(config, 0)
    assert model.overseer.reward == "environment" and model.overseer.outcomes == ("tampered", "intended")
    assert gridworld.world_of(model.env).pays == "boxes"
    assert gridworld.world_of(gridworld.make_env(config, 1, test=True)).pays == "performance"
    assert gridworld.make_model({**config, "reward": "outcome"}, 0).overseer.reward == "outcome"
    assert gridworld.make_model({**config, "world": "gridworld"}, 0).overseer.reward == "outcome"
    assert "contrast:intended" in policies(model)
    for option, message in (({"size": 4}, "has no --size, got 4"), ({"device": "cuda"}, "needs --device cpu")):
        with pytest.raises(ValueError, match=f"--world camera {message}"):
            gridworld.make_training_env({**config, **option}, 2)


@pytest.mark.parametrize("method", ["placebo", "shuffled"])
def test_labels_that_say_nothing_teach_by_routing_alone(method):
    model = gridworld.make_model(replace(Train(), method=method).config(), 0)
    assert model.overseer.method_name == "routing"
    assert model.overseer.noise.flip_rate == (0.5 if method == "shuffled" else 0)
    assert isinstance(model.env, PlaceboVecEnv) == (method == "placebo")


def test_early_stopping_takes_what_a_supervisor_would(tmp_path):
    out = tmp_path / "run"
    main(["train", "--method", "naive-early-stopped", "--oversight", "0.5", "--out", str(out), *SMALL])
    rows = [row for row in read_metrics(out / "metrics.csv") if SCORE in row]
    assert len(rows) > 2 and all(-1 <= row[SCORE] <= 1 for row in rows)
    result = read_json(out / "evaluation.json")
    best = max(rows, key=lambda row: (row[SCORE], -row["env_steps"]))
    assert result["stopped_at"] == best["env_steps"] and result["overseen_value"] == best[SCORE]
    assert result["validation_labels"] == sum(row[LABELS] for row in rows)
    assert 0 < result["validation_labels"] < 64 * len(rows) and result["env_steps"] == 4096
    kept, final = (RoutedPPO.load(out / name, device="cpu").policy.state_dict() for name in ("best", "model"))
    assert all(torch.equal(kept[name], final[name]) for name in final)


def test_the_control_has_the_contrast_policys_entropy_and_no_contrast(tmp_path):
    out = tmp_path / "run"
    main(["train", "--oversight", "0.5", "--out", str(out), *SMALL])
    policies = read_json(out / "evaluation.json")["policies"]
    assert policies["sharpened:diamond"]["entropy"] == pytest.approx(policies["contrast:diamond"]["entropy"], abs=0.02)
    model, config = gridworld.load_run(out)
    env = gridworld.make_env(config, 64)
    found = matching_temperature(model, "diamond", 0.7, env, 3, metric="paper")
    with model.steered("diamond", temperature=found):
        assert evaluate(model, env, seed=3, metric="paper")["entropy"] == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("method", ["placebo", "naive-early-stopped"])
def test_a_control_broken_off_goes_on_to_the_same_result(method, tmp_path, monkeypatch):
    """Both keep something beside the model: where episodes started, and the best model so far."""
    monkeypatch.setattr("routed_rl.rl.oversight_study.training.CHECKPOINT_EVERY", 3)
    options = ["train", "--method", method, "--oversight", "0.5", *SMALL]
    main([*options, "--out", str(tmp_path / "whole")])
    real, calls = RoutedPPO.train, []

    def broken(self):
        calls.append(1)
        if len(calls) == 21:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(RoutedPPO, "train", broken)
        with pytest.raises(SystemExit):
            main([*options, "--out", str(tmp_path / "broken")])
    main([*options, "--out", str(tmp_path / "broken")])
    for file in ("metrics.csv", "evaluation.json", "model/tensors.safetensors"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (["--method", "placebo", "--preset", "minigrid"], "'placebo' needs"),
        (["--method", "shuffled", "--flip-rate", "0.1"], "'shuffled' has its own"),
    ],
)
def test_a_control_where_there_can_be_none(options, quoted, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--out", str(tmp_path / "run"), *options])
    assert stop.value.code == 2 and quoted in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
