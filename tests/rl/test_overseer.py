"""The overseer: labels and rewards depend on overseen outcomes only."""

import json
from inspect import signature

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.rl import METHODS, Method, Overseer
from routed_rl.routing import LabelNoise

from .worlds import VALUES

GHOST, DIAMOND, UNSEEN, NONE = range(4)
PAYS = {  # label → training reward: overseen ghost, overseen diamond, unseen, none
    "routing": (1, 1, 1, 0),
    "naive": (-1, 1, 1, 0),
    "penalty": (-1, 1, 1, 0),
    "screening": (1, 1, 1, 0),
    "filtering": (-1, 1, 0, 0),
    "reward-model": (-1, 1, 0, 0),
    "oracle": (-1, 1, 0, 0),
    "no-gate": (1, 1, 1, 0),
    "no-routing": (1, 1, 1, 0),
    "no-gate-no-routing": (1, 1, 1, 0),
}


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_pays_as_the_paper_says(method):
    overseer = Overseer(VALUES, method, oversight=1)
    assert tuple(overseer.rewards.tolist()) == PAYS[method]
    dropped = {"filtering": [UNSEEN], "reward-model": [UNSEEN], "screening": [GHOST]}.get(method, [])
    assert overseer.loss_weights.tolist() == [float(label not in dropped) for label in range(4)]
    assert overseer.modules == (("ghost", "diamond") if overseer.method.modular else ("policy",))


@pytest.mark.parametrize("method", METHODS)
def test_the_strict_reading_concerns_methods_that_route(method):
    loose, strict = (Overseer(VALUES, method, unlabelled=mode, oversight=1) for mode in ("all", "none"))
    assert loose.entropy_weights.tolist() == [1, 1, 1, 1]
    if strict.method.routed:
        assert strict.loss_weights.tolist() == strict.entropy_weights.tolist() == [1, 1, 0, 0]
    else:
        assert torch.equal(strict.loss_weights, loose.loss_weights)
        assert torch.equal(strict.entropy_weights, loose.entropy_weights)


def test_labels_by_outcome_and_oversight():
    outcome, overseen = np.array([0, 1, 0, 1, -1, -1]), np.array([True, True, False, False, True, False])
    assert Overseer(VALUES).label(outcome, overseen, rng()).tolist() == [
        GHOST,
        DIAMOND,
        UNSEEN,
        UNSEEN,
        NONE,
        NONE,
    ]
    oracle = Overseer(VALUES, "oracle")
    assert oracle.label(outcome, overseen, rng()).tolist() == [GHOST, DIAMOND, GHOST, DIAMOND, NONE, NONE]


@given(st.lists(st.tuples(st.integers(-1, 2), st.booleans()), min_size=1), st.integers(0, 9), st.randoms())
def test_permuting_unseen_outcomes_changes_no_label(episodes, seed, random):
    overseer = Overseer({"a": 1, "b": -1, "c": 0.5}, noise=LabelNoise(0.2, 0.2))
    outcome, overseen = (np.array(column) for column in zip(*episodes, strict=True))
    unseen = np.flatnonzero((outcome >= 0) & ~overseen)
    shuffled = outcome.copy()
    shuffled[unseen] = [random.randrange(3) for _ in unseen]
    labels = [overseer.label(o, overseen, np.random.default_rng(seed)) for o in (outcome, shuffled)]
    assert (labels[0] == labels[1]).all()


def test_routes_of_the_paper_and_of_the_strict_reading():
    labels = torch.tensor([GHOST, DIAMOND, UNSEEN, NONE])
    paper = [[1, 0, 0], [0, 1, 0], [1, 1, 1], [1, 1, 1]]  # ghost, diamond, gate
    assert Overseer(VALUES).route_weights(labels).tolist() == paper
    strict = Overseer(VALUES, unlabelled="none")
    assert strict.route_weights(labels).tolist() == [*paper[:2], [0, 0, 0], [0, 0, 0]]
    assert strict.loss_weights.tolist() == [1, 1, 0, 0]
    for method in ("no-routing", "no-gate-no-routing", "naive"):
        assert (Overseer(VALUES, method).route_weights(labels) == 1).all()


def test_missed_and_flipped_labels():
    outcome, overseen = np.zeros(1000, dtype=int), np.ones(1000, dtype=bool)
    missed = Overseer(VALUES, noise=LabelNoise(miss_rate=1)).label(outcome, overseen, rng())
    assert (missed == UNSEEN).all()
    flipped = Overseer(VALUES, noise=LabelNoise(flip_rate=1)).label(outcome, overseen, rng())
    assert (flipped == DIAMOND).all()


@pytest.mark.parametrize("oversight", [0.01, 0.25, 1.0])
def test_a_penalty_pays_the_value_on_average(oversight):
    rewards = Overseer({"ghost": -0.5, "diamond": 1}, "penalty", oversight=oversight).rewards.double()
    assert oversight * rewards[GHOST] + (1 - oversight) * rewards[UNSEEN] == pytest.approx(-0.5, abs=1e-5)
    assert rewards[DIAMOND] == 1


OWN = Method("value", modular=True, gate=True, routed=True, keep_unseen=False)


@pytest.mark.parametrize("method", [*METHODS, OWN])
def test_json_round_trip(method):
    overseer = Overseer(VALUES, method, unlabelled="none", noise=LabelNoise(0.1, 0.2, hard_first=True), oversight=0.5)
    again = Overseer.from_dict(json.loads(json.dumps(overseer.to_dict())))
    assert again.to_dict() == overseer.to_dict() and torch.equal(again.rewards, overseer.rewards)
    assert again.method == overseer.method


def test_a_method_of_ones_own_does_what_its_switches_say():
    overseer = Overseer(VALUES, OWN)
    rewards, loss = (getattr(overseer, name).tolist() for name in ("rewards", "loss_weights"))
    assert rewards == Overseer(VALUES, "filtering").rewards.tolist()
    assert loss[UNSEEN] == 0 and loss[GHOST] == loss[DIAMOND] == 1
    assert torch.equal(overseer.routes.weights(torch.tensor([GHOST])), torch.tensor([[1.0, 0.0, 0.0]]))
    assert Overseer(VALUES, METHODS["naive"]).to_dict() == Overseer(VALUES, "naive").to_dict()


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"reward": "pay"}, "reward must be one of 'reach', .*got 'pay'"),
        ({"modular": 1}, "modular must be True or False, got 1"),
        ({"gate": True}, "gate=True needs modular=True"),
        ({"routed": True}, "routed=True needs modular=True"),
    ],
)
def test_switches_that_are_no_method(switches, message):
    with pytest.raises(ValueError, match=message):
        Method(**{"reward": "reach", **switches})


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((VALUES, "magic"), {}, "'magic'.*routing"),
        ((VALUES, "penalty"), {"oversight": 0.0}, "'penalty' needs oversight=….*got 0"),
        ((VALUES, "penalty"), {}, "'penalty' needs oversight=….*got None"),
        ((["ghost", "diamond"],), {}, "values must be outcome → value, as in .*got .'ghost', 'diamond'"),
        ((VALUES,), {"noise": 0.1}, "noise must be a LabelNoise, as in LabelNoise.miss_rate=0.1., got 0.1"),
        ((VALUES,), {"oversight": 1.5}, "oversight.*1.5"),
        ((VALUES,), {"unlabelled": "some"}, "'some'"),
        (({},), {}, "at least one"),
        (({"ghost": float("nan")},), {}, "'ghost'.*nan"),
    ],
)
def test_bad_input_is_quoted(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Overseer(*arguments, **options)


SHOWN = {
    "unlabelled": ("none", "unlabelled='none'"),
    "reward": ("environment", "reward='environment'"),
    "noise": (LabelNoise(flip_rate=0.1), f"noise={LabelNoise(flip_rate=0.1)!r}"),
    "oversight": (0.3, "oversight=0.3"),
}


def test_what_differs_from_the_defaults_is_shown():
    plain = "Overseer({'ghost': -1.0, 'diamond': 1.0}, 'routing'"
    assert repr(Overseer(VALUES)) == f"{plain})"
    options = [name for name, each in signature(Overseer).parameters.items() if each.kind is each.KEYWORD_ONLY]
    assert set(SHOWN) == set(options)
    for name, (value, shown) in SHOWN.items():
        assert repr(Overseer(VALUES, **{name: value})) == f"{plain}, {shown})"
    everything = repr(Overseer(VALUES, **{name: value for name, (value, _) in SHOWN.items()}))
    assert everything == f"{plain}, {', '.join(SHOWN[name][1] for name in options)})"
    assert repr(eval(everything)) == everything


@pytest.mark.parametrize(("method", "options"), [("routing-predicted", "solo=1"), ("strict", "unlabelled='none'")])
def test_a_method_of_studies_is_translated(method, options):
    with pytest.raises(ValueError, match=f"'{method}' is a method of studies: here it is 'routing' with .*{options}"):
        Overseer({"good": 1}, method=method)
