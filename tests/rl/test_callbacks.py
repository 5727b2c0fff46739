"""The evaluation callback scores and keeps the steered policy, and leaves training as it is."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import StopTrainingOnRewardThreshold

from routed_rl.rl import Overseer, RoutedPPO, SteeredEvalCallback

from .worlds import fingerprint, small_model, two_doors

DOORS = Overseer({"bad": -1.0, "good": 1.0})


def separated(**options):
    """A model that does not learn. One module always walks to the good door, the other to the bad one."""
    model = small_model(two_doors(), overseer=DOORS, learning_rate=0.0, replay_steps=0, **options)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
        for number, expert in enumerate(model.policy.mlp_extractor.experts):
            expert[-2].bias[number] = 1.0  # the last linear layer, before its activation
            model.policy.action_net.weight[number, number] = 20.0
    return model


def callback(steering, **options):
    options = {"n_eval_episodes": 4, "eval_freq": 8, "verbose": 0, "warn": False, **options}
    return SteeredEvalCallback(two_doors(2), steering, **options)


@pytest.mark.parametrize(("steering", "score"), [("good", 1), ({"choice": "bad"}, -1), ({"ablate": "bad"}, 1)])
def test_the_steered_policy_is_scored_and_kept(steering, score, tmp_path):
    model = separated()
    scored = callback(steering, best_model_save_path=tmp_path / "best", log_path=tmp_path)
    assert scored.deterministic is False
    model.learn(2 * 128, scored)
    assert scored.best_mean_reward == score
    assert (np.load(tmp_path / "evaluations.npz")["results"] == score).all()
    assert model.policy.steering == {}
    best = RoutedPPO.load(tmp_path / "best" / "best_model", device="cpu")
    with model.steered(**scored.steering):
        assert best.policy.steering == model.policy.steering != {}


def test_training_stops_at_a_steered_return_and_does_not_change_otherwise():
    stop = StopTrainingOnRewardThreshold(reward_threshold=0.9, verbose=0)
    assert separated().learn(10 * 128, callback("good", callback_on_new_best=stop)).num_timesteps == 128
    models = [small_model(two_doors(), overseer=DOORS) for _ in range(2)]
    for model, own in zip(models, (None, callback("good")), strict=True):
        model.learn(2 * 128, own)
    assert fingerprint(models[0]) == fingerprint(models[1])


def test_a_steering_that_the_policy_does_not_have_is_refused_before_training():
    model = separated()
    with pytest.raises(ValueError, match="unknown module 'gold'; the modules are bad, good"):
        model.learn(128, callback("gold"))
    assert model.num_timesteps == 0
