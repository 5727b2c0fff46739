"""Route tables by name, labels with errors, and the leakage report."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from routed_rl.routing import LabelNoise, RouteTable, leakage_report, route_gradient

names = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)


@given(st.data(), names, names)
def test_weights_are_those_of_the_dict(data, labels, modules):
    routes = {
        label: {m: data.draw(st.floats(-2, 2, width=32)) for m in data.draw(st.lists(st.sampled_from(modules)))}
        for label in labels
    }
    table = RouteTable(routes, modules)
    ids = torch.tensor(data.draw(st.lists(st.integers(-1, len(labels) - 1), min_size=1)))
    weights = table.weights(ids)
    assert weights.shape == (len(ids), len(modules))
    for label_id, row in zip(ids.tolist(), weights.tolist(), strict=True):
        given = routes[labels[label_id]] if label_id >= 0 else {}
        assert row == [given.get(module, 1.0) for module in modules]
    again = RouteTable(table.to_dict(), modules)
    assert again.to_dict() == table.to_dict() and torch.equal(again.weights(ids), weights)


def test_unlabelled_row_and_label_ids():
    table = RouteTable({"unlabelled": {"m": 0.3}, "good": {}, "bad": {"m": 0}}, ("m", "n"))
    assert table.labels == ("good", "bad")
    assert table.label_id("bad") == 1 and table.label_id("unlabelled") == -1
    torch.testing.assert_close(table.weights(torch.tensor([[-1], [1]])), torch.tensor([[[0.3, 1.0]], [[0.0, 1.0]]]))


@pytest.mark.parametrize(
    ("routes", "modules", "message"),
    [
        ({"a": {"x": 1}}, ("m",), "'a'.*'x'.*m"),
        ({"a": {"m": float("nan")}}, ("m",), "'a'.*'m'.*nan"),
        ({"a": {"m": "1"}}, ("m",), "'1'"),
        ({"a": {}}, (), "at least one"),
        ({"a": {}}, ("m", "m"), "distinct"),
    ],
)
def test_a_bad_table_is_refused_by_name(routes, modules, message):
    with pytest.raises(ValueError, match=message):
        RouteTable(routes, modules)


@pytest.mark.parametrize("ids", [torch.tensor([2]), torch.tensor([-2]), torch.tensor([0.5]), torch.tensor([True])])
def test_bad_label_ids_are_refused(ids):
    with pytest.raises(ValueError, match="label ids"):
        RouteTable({"a": {}, "b": {}}, ("m",)).weights(ids)


def test_unknown_label_is_refused():
    with pytest.raises(ValueError, match="'c'"):
        RouteTable({"a": {}, "b": {}}, ("m",)).label_id("c")


@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=50),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(0, 99),
)
def test_label_noise_stays_in_range_and_keeps_the_unlabelled(labels, miss, flip, seed):
    labels = np.array(labels)
    noisy = LabelNoise(miss, flip).apply(labels, 4, np.random.default_rng(seed))
    assert noisy.min() >= -1 and noisy.max() < 4
    assert (noisy[labels < 0] == -1).all()
    if miss == 1:
        assert (noisy == -1).all()
    elif flip == 1:
        assert (noisy[labels >= 0] != labels[labels >= 0]).all()
    elif miss == flip == 0:
        assert (noisy == labels).all()


def test_label_noise_rates_and_uniform_flips():
    labels = np.full(200_000, 1)
    noisy = LabelNoise(0.2, 0.5).apply(labels, 3, np.random.default_rng(0))
    shares = [np.mean(noisy == label) for label in (-1, 0, 1, 2)]
    np.testing.assert_allclose(shares, [0.2, 0.8 * 0.25, 0.8 * 0.5, 0.8 * 0.25], atol=0.005)


@pytest.mark.parametrize("kind", ["miss_rate", "flip_rate"])
def test_errors_fall_on_the_difficult_at_the_same_mean_rate(kind):
    rng = np.random.default_rng(0)
    labels, difficulty = rng.integers(-1, 2, 20_000), rng.integers(1, 33, 20_000)
    noisy = LabelNoise(**{kind: 0.3}, hard_first=True).apply(labels, 2, rng, difficulty)
    wrong, given = noisy != labels, labels >= 0
    assert not wrong[~given].any()
    assert wrong[given].mean() == pytest.approx(0.3, abs=0.02)
    for low, high, rate in ((1, 4, 0.04), (15, 18, 0.3), (29, 32, 0.56)):  # the rate grows evenly from 0 to 0.6
        among = given & (difficulty >= low) & (difficulty <= high)
        assert wrong[among].mean() == pytest.approx(rate, abs=0.04)


def test_errors_by_difficulty_need_it_and_a_rate_that_can_be_doubled():
    with pytest.raises(ValueError, match=r"difficulty.*None"):
        LabelNoise(0.1, hard_first=True).apply(np.zeros(3, dtype=int), 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"0\.5.*0\.6"):
        LabelNoise(0.1, 0.6, hard_first=True)


def test_a_labels_fate_depends_on_its_place_alone():
    one, other = np.array([0, 1, 0, 1, 0]), np.array([0, 0, 0, 1, 1])
    noise = LabelNoise(0.3, 0.3)
    a, b = (noise.apply(labels, 2, np.random.default_rng(7)) for labels in (one, other))
    assert (a[one == other] == b[one == other]).all()


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), "0.5", True])
def test_a_bad_rate_is_quoted(rate):
    with pytest.raises(ValueError, match="miss_rate must be a probability"):
        LabelNoise(miss_rate=rate)


def test_leakage_report_finds_where_the_gradient_goes():
    torch.manual_seed(0)
    left, right, head = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 1)
    x, labels = torch.randn(8, 3), torch.tensor([0, 0, 0, 1, 1, -1, -1, -1])
    table = RouteTable({"l": {"right": 0}, "r": {"left": 0}}, ("left", "right"))
    weights = table.weights(labels)
    losses = head(route_gradient(left(x), weights[:, 0]) + route_gradient(right(x), weights[:, 1])).pow(2).squeeze(1)
    report = leakage_report(losses, labels, {"left": left, "right": right, "head": head}, table.labels)
    assert report.mass["l"]["right"] == 0 and report.mass["r"]["left"] == 0
    assert all(mass > 0 for mass in report.mass["unlabelled"].values())
    (expected,) = torch.autograd.grad(losses[:3].sum(), left.weight, retain_graph=True)
    (bias,) = torch.autograd.grad(losses[:3].sum(), left.bias, retain_graph=True)
    norm = float((expected.pow(2).sum() + bias.pow(2).sum()).sqrt())
    assert report.mass["l"]["left"] == pytest.approx(norm)
    assert report.leakage("l", ["left", "head"]) == 0
    assert 0 < report.leakage("l", ["left"]) < 1, "the shared head learns from every label"
    assert "unlabelled" in str(report) and left.weight.grad is None
    with pytest.raises(ValueError, match="'x'"):
        report.leakage("x", ["left"])
    with pytest.raises(ValueError, match="middle"):
        report.leakage("l", ["middle"])


def test_leakage_of_a_label_without_samples_is_zero_and_bad_shapes_are_refused():
    layer = nn.Linear(2, 1)
    losses = layer(torch.randn(3, 2)).squeeze(1)
    report = leakage_report(losses, torch.zeros(3, dtype=torch.long), {"layer": layer}, ("a", "b"))
    assert report.leakage("b", []) == 0 and report.leakage("a", []) == 1
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        leakage_report(losses, torch.zeros(2, dtype=torch.long), {"layer": layer}, ("a",))
    with pytest.raises(ValueError, match="label ids"):
        leakage_report(losses, torch.full((3,), 5), {"layer": layer}, ("a",))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_label_ids_of_any_integer_type(dtype):
    table = RouteTable({"x": {"a": 0}, "y": {"b": 0}}, ("a", "b"))
    assert table.weights(torch.tensor([1, 0, 1], dtype=dtype)).tolist() == [[1, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize("labels", [np.array([0.5]), np.array([2]), np.array([-2])])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(ValueError, match=r"-1 … 1"):
        LabelNoise().apply(labels, 2, np.random.default_rng(0))
