"""A method that routes warns once if one of its modules gets hardly any labels; every method, if there are none."""

import warnings

import pytest

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.rl import Overseer, balance

from .worlds import VALUES, small_model

DIAMONDS = {"ghost": 0.0, "diamond": 1.0}


def warned(oversight, monkeypatch, method="routing", unlabelled="all", **options):
    """Train, and return the warnings."""
    monkeypatch.setattr(balance, "ENOUGH", 20)
    overseer = Overseer(VALUES, method, unlabelled=unlabelled)
    env = DiamondGhostVecEnv(32, oversight=oversight, seed=0)
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
