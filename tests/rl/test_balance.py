"""What is said once in training: no episode ends, no label arrives, outcomes are hidden, labels are very unequal."""

import warnings

import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.rl import Overseer, balance, check_oversight_env

from .worlds import VALUES, TwoDoors, small_model, two_doors

DIAMONDS = {"ghost": 0.0, "diamond": 1.0}


class Endless(TwoDoors):
    def step(self, action):
        obs, reward, _, _, _ = super().step(0 if self.position > 2 else 1)
        return obs, reward, False, False, {}


class Hiding(TwoDoors):
    """It hides the outcome where nobody sees it, which is a mistake that its author may make."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, info if info.get("overseen") else {**info, "outcome": None}


def warned(oversight, monkeypatch, method="routing", unlabelled="all", env=None, **options):
    """Train, and return the warnings."""
    monkeypatch.setattr(balance, "ENOUGH", 20)
    values = VALUES if env is None else {"bad": -1.0, "good": 1.0}
    overseer = Overseer(values, method, unlabelled=unlabelled)
    env = env or DiamondGhostVecEnv(32, oversight=oversight, seed=0)
    model = small_model(env, overseer=overseer, replay_steps=0, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(6 * 256)
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (
            {},
            "solo=1 (each module acts alone in some environments), Overseer(…, unlabelled='predicted'), more oversight",
        ),
        ({"unlabelled": "predicted", "solo": 1.0}, "more oversight"),
    ],
)
def test_a_module_without_labels_is_named_once_with_what_to_do(options, advice, monkeypatch):
    (message,) = warned(DIAMONDS, monkeypatch, **options)
    assert "0 times on 'ghost'" in message and "the module of 'ghost' has little to learn from" in message
    assert message.endswith(f": try {advice}")


@pytest.mark.parametrize("method", ["routing", "naive", "reward-model"])
def test_no_label_at_all_is_said_once(method, monkeypatch):
    monkeypatch.setattr(balance, "SILENT", 30)
    (message,) = warned(0.0, monkeypatch, method)
    assert "episodes that reached an outcome was overseen, so the learner has no label" in message


@pytest.mark.parametrize(("oversight", "method"), [(1.0, "routing"), (DIAMONDS, "naive"), (DIAMONDS, "no-routing")])
def test_equal_labels_and_other_methods_are_not_warned_of(oversight, method, monkeypatch):
    assert warned(oversight, monkeypatch, method) == []


@pytest.mark.parametrize("method", ["routing", "naive"])
def test_what_an_environment_does_wrong_is_said_once(method, monkeypatch):
    monkeypatch.setattr(balance, "LONG", 16)
    (endless,) = warned(0.5, monkeypatch, method, env=DummyVecEnv([Endless] * 32))
    assert "no episode has ended in 16 steps of each environment" in endless and "TimeLimit" in endless
    (hiding,) = warned(0.5, monkeypatch, method, env=DummyVecEnv([Hiding] * 32))
    assert "if the environment hides outcomes that nobody saw, set" in hiding
    with pytest.warns(UserWarning, match="if the environment hides outcomes that nobody saw, set"):
        check_oversight_env(Hiding(), ("bad", "good"))
    assert warned(0.5, monkeypatch, method, env=two_doors(32)) == []


class Neutral(TwoDoors):
    """Half of the episodes end at a door that is no outcome."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, info | ({"outcome": None} if info.get("outcome") == "bad" else {})


@pytest.mark.parametrize(("method", "oversight"), [("oracle", 0.5), ("naive", 0.5), ("routing", 1.0)])
def test_ends_that_are_no_outcome_are_no_hidden_ones(method, oversight, monkeypatch):
    """The oracle sees everything, and so does oversight 1. Elsewhere, the other end is seen without a label."""
    monkeypatch.setattr(balance, "ENOUGH", 20)
    overseer = Overseer({"bad": -1.0, "good": 1.0}, method, oversight=oversight)
    model = small_model(DummyVecEnv([lambda: Neutral(oversight)] * 32), overseer=overseer, replay_steps=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*hides outcomes")
        model.learn(6 * 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_oversight_env(Neutral(0.5), ("bad", "good"))


def test_hidden_outcomes_are_no_reason_to_say_nothing_more(monkeypatch):
    monkeypatch.setattr(balance, "LEAST", 0.9)  # so any labels are unequal
    said = warned(0.5, monkeypatch, env=DummyVecEnv([Hiding] * 32))
    assert len(said) == 2 and "hides outcomes" in said[0] and "has little to learn from" in said[1]
