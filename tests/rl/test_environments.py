"""What is no environment, or breaks Gymnasium's API, is refused in one sentence wherever it is passed."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from routed_rl.rl import Overseer, RoutedPPO, SteeredEvalCallback, check_oversight_env, evaluate

from .worlds import TwoDoors, refused, small_model, two_doors

DOORS = Overseer({"bad": -1.0, "good": 1.0})
PAIR = gym.spaces.Box(0, 1, (2,), np.float32)
RESET, STEP = "must return (observation, info), got ", "terminated, truncated, info), got "


def door(**methods):
    return type("Door", (TwoDoors,), methods)


def step_of(change):
    return {"step": lambda self, action: change(*TwoDoors.step(self, action))}


# What is wrong → the class, and what the error quotes.
FAULTS = {
    "reset returns None": (door(reset=lambda self, *, seed=None, options=None: None), ("Door.reset", f"{RESET}None")),
    "reset without info": (
        door(reset=lambda self, *, seed=None, options=None: TwoDoors.reset(self, seed=seed)[0]),
        ("Door.reset", f"{RESET}array("),
    ),
    "reset without info, of two numbers": (
        door(reset=lambda self, *, seed=None, options=None: np.zeros(2, np.float32), observation_space=PAIR),
        ("Door.reset", f"{RESET}array("),
    ),
    "reset without seed": (door(reset=lambda self: TwoDoors.reset(self)), ("Door.reset", "seed=None")),
    "step returns None": (door(step=lambda self, action: None), ("Door.step", f"{STEP}None")),
    "step of the old API": (
        door(**step_of(lambda obs, reward, terminated, truncated, info: (obs, reward, terminated, info))),
        ("Door.step", f"{STEP}(array(", "done has become terminated and truncated"),
    ),
    "reset of another shape": (
        door(reset=lambda self, *, seed=None, options=None: (TwoDoors.reset(self, seed=seed)[0][1:], {})),
        ("Door.reset must return an observation of its observation_space, (6,)", "shape (5,)"),
    ),
    "step of another shape": (
        door(**step_of(lambda obs, *step: (obs[1:], *step))),
        ("Door.step must return an observation of its observation_space, (6,)", "shape (5,)"),
    ),
    "step with info in the wrong place": (
        door(**step_of(lambda *step: (*step[:3], step[4], step[3]))),
        ("Door.step", STEP),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_environment_that_breaks_the_api_is_explained(fault):
    kind, quoted = FAULTS[fault]
    refused(lambda: check_oversight_env(kind(), ("bad", "good")), *quoted)
    for env in (kind(), DummyVecEnv([kind] * 2), VecMonitor(DummyVecEnv([kind]))):
        refused(lambda env=env: small_model(env, overseer=DOORS).learn(16), *quoted)
    if fault != "reset without info, of two numbers":
        refused(lambda: evaluate(small_model(TwoDoors(), overseer=DOORS), kind()), *quoted)


@pytest.mark.parametrize(
    "kind",
    [
        door(reset=lambda self, *, seed=None, options=None: (TwoDoors.reset(self, seed=seed)[0] * np.nan, {})),
        door(**step_of(lambda obs, *step: (obs / np.float32(0), *step))),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_observations_that_are_no_numbers_are_named(kind):
    nan = "the environment's observations hold NaN or infinity"
    refused(lambda: check_oversight_env(kind(), ("bad", "good")), nan)
    refused(lambda: small_model(DummyVecEnv([kind] * 2), overseer=DOORS).learn(64), nan)


def test_a_policy_that_became_nan_is_said():
    model = small_model(two_doors(2), overseer=DOORS)
    with torch.no_grad():
        model.policy.action_net.bias.fill_(torch.nan)
    refused(lambda: model.learn(64), "the policy's probabilities became NaN")


@pytest.mark.parametrize("method", ["reset", "step"])
@pytest.mark.parametrize("error", [TypeError, ValueError, AttributeError, RuntimeError])
def test_an_error_of_the_environments_own_code_stays(method, error):
    def fail(*_, **__):
        raise error("mine")

    env = door(**{method: fail})()
    with pytest.raises(error, match=r"^mine$"):
        check_oversight_env(env, ("bad", "good"))
    with pytest.raises(error, match=r"^mine$"):
        small_model(env, overseer=DOORS).learn(16)


def test_an_error_from_elsewhere_leaves_the_environment_alone():
    model = small_model(two_doors(), overseer=DOORS)
    model.learn(128)
    before = model.env.get_attr("steps")
    refused(lambda: model.learn(128, SteeredEvalCallback(two_doors(2), "gold"), reset_num_timesteps=False), "'gold'")
    model.steer("good")
    refused(lambda: model.learn(128, reset_num_timesteps=False), "call unsteer()")
    assert model.env.get_attr("steps") == before


class NoSpaces(gym.Env):
    pass


NONE = {
    "class": (TwoDoors, "<class", "make one, as in TwoDoors(…)"),
    "function": (two_doors, "as in two_doors(…)"),
    "list": ([TwoDoors], "[<class"),
    "number": (5, "5"),
    "no spaces": (NoSpaces(), "observation_space", "NoSpaces"),
    "text": ("doors", "'doors'"),
    "None": (None, "None"),
}


@pytest.mark.parametrize("given", NONE)
def test_what_is_no_environment_is_refused(given, tmp_path):
    value, *quoted = NONE[given]
    model = small_model(two_doors(), overseer=DOORS)
    model.save(tmp_path / "model")
    calls = {
        "the constructor": lambda: RoutedPPO("MlpPolicy", value, DOORS),
        "load": lambda: RoutedPPO.load(tmp_path / "model", value),
        "set_env": lambda: model.set_env(value),
        "evaluate": lambda: evaluate(model, value),
        "check_oversight_env": lambda: check_oversight_env(value, ("bad", "good")),
        "SteeredEvalCallback": lambda: SteeredEvalCallback(value, "good"),
    }
    allowed = {"text": "the constructor", "None": "load"}  # an identifier of Gymnasium's, and a model that only acts
    for place, call in calls.items():
        if allowed.get(given) != place:
            refused(call, "eval_env must" if place == "SteeredEvalCallback" else "env must", *quoted)


def test_the_check_refuses_spaces_that_no_learner_can_use():
    class Endless(gym.Env):
        observation_space = gym.spaces.Box(0, 1, (1,))
        action_space = gym.spaces.Box(-np.inf, np.inf, (1,))

    with pytest.raises(ValueError, match="action_space must have finite bounds"):
        check_oversight_env(Endless(), ["a"])
