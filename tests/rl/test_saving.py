"""Saved models: they are complete, training continues from them exactly, and loading executes no code."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import LinearSchedule

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.rl import METHODS, Overseer, RoutedPPO, outcome_model
from routed_rl.rl.encoding import decode, decode_space, encode, encode_space
from routed_rl.runs import CheckpointError, read_checkpoint, write_checkpoint

from .worlds import VALUES, fingerprint, small_model


@pytest.mark.parametrize(
    ("method", "own"), [*((method, {}) for method in METHODS), ("routing", {"unlabelled": "predicted", "solo": 0.5})]
)
def test_load_and_continue_equals_never_stopping(method, own, tmp_path, monkeypatch):
    monkeypatch.setattr(outcome_model, "MIN_EPISODES", 2)
    own = {
        "overseer": Overseer(VALUES, method, unlabelled=own.get("unlabelled", "all"), oversight=1),
        "solo": own.get("solo", 0.0),
    }
    options = {**own, "learning_rate": LinearSchedule(1e-3, 1e-4, 1.0), "ent_coef": LinearSchedule(0.05, 0.01, 1.0)}
    unbroken = small_model(**options)
    unbroken.learn(8 * 128)
    if unbroken.outcome_model is not None:
        assert unbroken.outcome_model.ready
    broken = small_model(**options)
    total, callback = broken._setup_learn(8 * 128)
    for _ in range(3):
        broken.collect_rollouts(broken.env, callback, None, broken.n_steps)
        broken._update_current_progress_remaining(broken.num_timesteps, total)
        broken.train()
    broken.save(tmp_path / "model")
    resumed = RoutedPPO.load(
        tmp_path / "model", env=DiamondGhostVecEnv(16, oversight=0.3), device="cpu", force_reset=False
    )
    resumed.learn(5 * 128, reset_num_timesteps=False)
    assert fingerprint(resumed) == fingerprint(unbroken)


def test_saving_twice_gives_the_same_bytes_and_steering_is_kept(tmp_path):
    model = small_model()
    model.learn(2 * 128)
    model.steer({"diamond": 0.8, "ghost": 0.2})
    model.save(tmp_path / "a")
    RoutedPPO.load(tmp_path / "a", env=DiamondGhostVecEnv(16), device="cpu", force_reset=False)
    model.save(tmp_path / "b")
    a, b = (sorted((p.name, p.read_bytes()) for p in (tmp_path / d).iterdir()) for d in ("a", "b"))
    assert a == b
    loaded = RoutedPPO.load(tmp_path / "a", device="cpu")
    assert loaded.policy.steering == {"mix": {"ghost": 0.2, "diamond": 0.8}}
    obs = np.random.default_rng(0).random((50, 100), dtype=np.float32)
    assert (loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]).all()
    model.unsteer()
    model.ablate("ghost")
    model.save(tmp_path / "c")
    assert RoutedPPO.load(tmp_path / "c", device="cpu").policy.steering == {"ablated": ["ghost"]}


def test_another_number_of_environments_may_go_on(tmp_path):
    model = small_model()
    model.learn(128)
    model.save(tmp_path / "model")
    loaded = RoutedPPO.load(tmp_path / "model", env=DiamondGhostVecEnv(4), device="cpu")
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 192


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    model = small_model()
    model.save(tmp_path / "model")
    checkpoint = read_checkpoint(tmp_path / "model")
    checkpoint.meta["arguments"]["policy_kwargs"]["hidden"] = [16, 16]
    write_checkpoint(tmp_path / "other", checkpoint.tensors, checkpoint.meta)
    with pytest.raises(CheckpointError, match="another architecture") as error:
        RoutedPPO.load(tmp_path / "other", device="cpu")
    assert "\n" not in str(error.value)


def test_a_foreign_checkpoint_and_an_unknown_class_are_refused(tmp_path):
    write_checkpoint(tmp_path / "foreign", {"x": torch.zeros(1)}, {"some": "thing"})
    with pytest.raises(CheckpointError, match=r"foreign.*not a RoutedPPO"):
        RoutedPPO.load(tmp_path / "foreign")
    with pytest.raises(CheckpointError, match=r"'os.system'"):
        decode({"class": "os.system"})
    with pytest.raises(CheckpointError, match="missing"):
        RoutedPPO.load(tmp_path / "missing")


def forget(tensors, meta):
    del meta["overseer"]


def invent(tensors, meta):
    meta["arguments"]["magic"] = 1


def unnumber(tensors, meta):
    meta["n_envs"] = "many"


def shrink_optimizer(tensors, meta):
    tensors["optimizer.0.exp_avg"] = tensors["optimizer.0.exp_avg"][:1]


def lose_replay(tensors, meta):
    del tensors["replay.count"]


def shrink_buffer(tensors, meta):
    tensors["buffer.obs"] = tensors["buffer.obs"][:, :1]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (forget, "overseer"),
        (invent, "magic"),
        (unnumber, "many"),
        (shrink_optimizer, "optimizer"),
        (lose_replay, "replay.count"),
        (shrink_buffer, "buffer.obs"),
    ],
)
def test_a_sound_checkpoint_of_something_else_is_refused_in_one_line(damage, named, tmp_path):
    model = small_model()
    model.learn(128)
    model.save(tmp_path / "model")
    checkpoint = read_checkpoint(tmp_path / "model")
    damage(checkpoint.tensors, checkpoint.meta)
    write_checkpoint(tmp_path / "other", checkpoint.tensors, checkpoint.meta)
    with pytest.raises(CheckpointError, match=named) as error:
        RoutedPPO.load(tmp_path / "other", device="cpu")
    assert "\n" not in str(error.value) and "other" in str(error.value)


def test_an_environment_with_other_spaces_is_refused(tmp_path):
    small_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="spaces do not match"):
        RoutedPPO.load(tmp_path / "model", env=DiamondGhostVecEnv(4, size=4))


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 1, (3, 2), np.float32),
        gym.spaces.Box(np.array([-1.0, -np.inf]), np.array([1.0, 5.0]), dtype=np.float64),
        gym.spaces.Box(0, 255, (2, 2, 3), np.uint8),
        gym.spaces.Discrete(4),
        gym.spaces.Discrete(3, start=2),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.MultiBinary(4),
    ],
)
def test_spaces_round_trip(space):
    assert decode_space(encode_space(space)) == space


def test_values_round_trip():
    value = {
        "a": [1, 2.5, None, "x"],
        "optimizer_class": torch.optim.AdamW,
        "kwargs": {"eps": np.float64(1e-5)},
    }
    assert decode(encode("arguments", value)) == {**value, "kwargs": {"eps": 1e-5}}
    schedule = decode(encode("lr", LinearSchedule(1.0, 0.1, 0.5)))
    assert schedule(0.75) == LinearSchedule(1.0, 0.1, 0.5)(0.75)


def test_a_model_is_loaded_from_the_working_directory(tmp_path, monkeypatch):
    small_model().save(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    assert RoutedPPO.load(".").num_timesteps == 0
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint '\.'"):
        RoutedPPO.load(".")
