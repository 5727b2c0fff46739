"""The evaluation callback scores and keeps the steered policy, and leaves training as it is."""

import numpy as np
import pytest
import torch
from gymnasium.wrappers import RescaleObservation
from stable_baselines3.common.callbacks import StopTrainingOnRewardThreshold
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.rl import Overseer, RoutedPPO, SteeredEvalCallback, evaluate_policies

from .worlds import TwoDoors, fingerprint, refused, small_model, two_doors

DOORS = Overseer({"bad": -1.0, "good": 1.0})


def separated(env=None, **options):
    """A model that does not learn. One module always walks to the good door, the other to the bad one."""
    model = small_model(env or two_doors(), overseer=DOORS, learning_rate=0.0, replay_steps=0, **options)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
        for number, expert in enumerate(model.policy.mlp_extractor.experts):
            expert[-2].bias[number] = 1.0  # the last linear layer, before its activation
            model.policy.action_net.weight[number, number] = 20.0
    return model


def callback(steering, env=None, **options):
    options = {"n_eval_episodes": 4, "eval_freq": 8, "verbose": 0, **options}
    return SteeredEvalCallback(env or two_doors(2), steering, **options)


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


# The training environment, and another way to name it or a part of it.
TWINS = {
    "itself": (two_doors, lambda model, given: given),
    "get_env": (TwoDoors, lambda model, given: model.get_env()),
    "what the model wrapped": (TwoDoors, lambda model, given: given),
    "wrapped again": (two_doors, lambda model, given: VecMonitor(given)),
    "the inner one": (lambda: VecMonitor(two_doors()), lambda model, given: given.venv),
    "one of several": (two_doors, lambda model, given: given.envs[3]),
    "one of several, wrapped": (two_doors, lambda model, given: Monitor(given.envs[3])),
    "batched": (lambda: DiamondGhostVecEnv(4), lambda model, given: given),
}


@pytest.mark.parametrize("twin", TWINS)
def test_the_training_environment_is_refused_before_training(twin):
    make, again = TWINS[twin]
    given = make()
    model = small_model(given, overseer=None if twin == "batched" else DOORS)
    steering = "diamond" if twin == "batched" else "good"
    refused(
        lambda: model.learn(128, SteeredEvalCallback(again(model, given), steering)),
        "eval_env must be an environment of its own, got one that the model trains in",
    )
    assert model.num_timesteps == 0


OTHERS = {
    "plain": lambda: TwoDoors(),
    "vector": lambda: two_doors(2),
    "with Monitor": lambda: Monitor(TwoDoors()),
    "with VecMonitor": lambda: VecMonitor(two_doors(2)),
    "normalised": lambda: VecNormalize(two_doors(2)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("other", OTHERS)
def test_no_monitor_is_needed_and_rewards_are_true(other):
    scored = SteeredEvalCallback(OTHERS[other](), "bad", n_eval_episodes=4, eval_freq=8, verbose=0)
    separated().learn(128, scored)
    assert scored.last_mean_reward == -1


def test_normalised_observations_are_those_of_training_or_refused_before_training():
    model = separated(env=VecNormalize(two_doors(), norm_reward=False))
    scored = callback("good", env=VecNormalize(two_doors(2)))
    model.learn(128, scored)
    assert np.array_equal(scored.eval_env.obs_rms.mean, model.env.obs_rms.mean)
    refused(lambda: model.learn(128, callback("good")), "eval_env must have the wrappers", "VecNormalize", "got <")
    other = DummyVecEnv([lambda: RescaleObservation(TwoDoors(), np.float32(-1), np.float32(1))])
    refused(lambda: separated().learn(128, callback("good", env=other)), "eval_env must have the spaces", "Box(-1.0")


WRONG = {
    "swapped": (("good", two_doors()), {}, "eval_env must be a Gymnasium environment or a VecEnv, got 'good'"),
    "a class": ((TwoDoors, "good"), {}, "eval_env must", "make one, as in TwoDoors(…)"),
    "an environment as steering": (
        (TwoDoors(), TwoDoors()),
        {},
        "steering must be a module, or a dict",
        "TwoDoors object",
    ),
    "no steering": ((TwoDoors(), None), {}, "steering must be a module, or a dict", "got None"),
    "a misspelt part": ((TwoDoors(), {"chioce": "good"}), {}, "a steering has no argument chioce", "'choice'?"),
    "a misspelt option": ((TwoDoors(), "good"), {"eval_frq": 5}, "no argument eval_frq, got 5", "'eval_freq'?"),
    "no episodes": ((TwoDoors(), "good"), {"n_eval_episodes": 0}, "n_eval_episodes", "got 0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_in_the_call_is_refused_at_once(wrong):
    given, options, *quoted = WRONG[wrong]
    refused(lambda: SteeredEvalCallback(*given, **options), *quoted)


def test_policies_to_evaluate_are_named_as_for_the_callback():
    model = separated()
    short, long = ({"a": one} for one in ("good", {"choice": "good"}))
    results = [evaluate_policies(model, TwoDoors(), policies=each, n_episodes=4) for each in (short, long)]
    assert results[0] == results[1] and results[0]["a"]["episode_return"] == 1
    refused(lambda: evaluate_policies(model, TwoDoors(), policies={"a": {"avoids": {"bad": 4}}}), "avoids", "'avoid'?")
