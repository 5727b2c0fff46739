"""The router on existing modules: it equals routing one example at a time, and refuses what it cannot route."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from routed_rl.routing import GradientRouter, RouteTable, Site
from tests.routing import naive
from tests.routing.routed_models import MODES, SITES, TABLE, assert_equal, batch, grads, make_model, table_of

WEIGHTS = st.sampled_from([0.0, 1.0, -0.75, 0.5, 2.0])


def places(width, hidden, biases=False):
    """The places where a model of :func:`make_model` may be routed: (module, at, units)."""
    return [
        *((("0", "bias", width), ("1.up", "bias", hidden), ("3", "bias", 2)) if biases else ()),
        *(("0", "output", width), ("0", "input", 3), ("1", "output", width), ("2", "input", width)),
        *(("1.up", "output", hidden), ("1.down", "input", hidden), ("1.act", "output", hidden)),
        *(("1.down", "output", width), ("2.up", "input", width), ("3", "input", width)),
    ]


@st.composite
def routed(draw, layers_alone):
    """A model's shape, sites in it (they may overlap or be nested), weights (B, S) and a seed."""
    width, hidden = draw(st.integers(2, 5)), draw(st.integers(2, 7))
    possible = [p for p in places(width, hidden, layers_alone) if not layers_alone or p[0] not in ("1", "2", "1.act")]
    sites = {}
    for number, (module, at, n) in enumerate(draw(st.lists(st.sampled_from(possible), min_size=1, max_size=4))):
        start = draw(st.integers(0, n - 1))
        units = draw(
            st.one_of(
                st.none(),
                st.integers(start + 1, n).map(lambda stop, start=start: slice(start, stop)),
                st.sets(st.integers(0, n - 1), min_size=1).map(sorted),
            )
        )
        sites[f"site {number}"] = Site(at=at, units=units, module=module)
    rows = [[draw(WEIGHTS) for _ in sites] for _ in range(draw(st.integers(1, 5)))]
    return make_model(0, width, hidden), sites, torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(case=routed(False), mode=st.sampled_from(["activation", "forward"]), positions=st.booleans())
def test_activations_against_one_example_at_a_time(case, mode, positions):
    check(*case, mode, positions)


@settings(max_examples=40, deadline=None)
@given(case=routed(True), positions=st.booleans())
def test_parameters_against_one_example_at_a_time(case, positions):
    check(*case, "parameter", positions)


def check(model, sites, weights, mode, positions):
    torch.manual_seed(0)
    b = len(weights)
    # Each position is one example of the naive reference.
    inputs = torch.randn(b, 1, 3, dtype=torch.float64) if positions else torch.randn(b, 3, dtype=torch.float64)
    target = torch.randn(b, 2, dtype=torch.float64)

    def loss(output, i):
        return (output.reshape(-1, 2) - target[i]).square().sum()

    by_site = dict(zip(sites, weights.T, strict=True))
    expected = naive.gradients(model, sites, by_site, mode, inputs, loss)
    before = model(inputs)
    labels = torch.arange(b)[:, None] if positions else torch.arange(b)
    with GradientRouter(model, sites, table_of(weights, tuple(sites)), mode) as router, router(labels):
        output = model(inputs)
        (output.reshape(-1, 2) - target).square().sum().backward()
    if mode != "forward":
        torch.testing.assert_close(output, before, rtol=0, atol=1e-12)
    assert_equal(grads(model), expected)
    model.zero_grad()
    assert torch.equal(model(inputs), before), "as it was"


@pytest.mark.parametrize("mode", ["activation", "forward"])
@pytest.mark.parametrize("units", [None, slice(1, 3), [0, 2]])
@pytest.mark.parametrize("at", ["input", "output"])
def test_convolutions(mode, units, at):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 2), nn.Flatten(), nn.Linear(27, 2)).double()
    sites = {"2": Site(at=at, units=units)}
    weights = torch.tensor([[0.0], [-0.5], [1.0]], dtype=torch.float64)
    inputs = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    expected = naive.gradients(model, sites, {"2": weights[:, 0]}, mode, inputs, lambda y, i: y.square().sum())
    with GradientRouter(model, sites, table_of(weights, ("2",)), mode) as router, router(torch.arange(3)):
        model(inputs).square().sum().backward()
    assert_equal(grads(model), expected)


@pytest.mark.parametrize("units", [None, slice(0, 2)])
@pytest.mark.parametrize("mode", MODES)
def test_embeddings_and_positions(mode, units):
    """Each occurrence of a token learns by its own label; the padding token does not learn."""
    torch.manual_seed(0)
    embedding = nn.Embedding(7, 4, padding_idx=0).double()
    model = nn.Sequential(embedding, nn.Linear(4, 3).double())
    ids, w = torch.randint(0, 7, (5, 6)), torch.tensor([0.0, 1.0, -2.0, 0.5])
    labels = torch.randint(0, 4, (5, 6))
    with (
        GradientRouter(model, {"0": Site(units=units)}, table_of(w[:, None], ("0",)), mode) as router,
        router(labels),
    ):
        model(ids).pow(3).sum().backward()
    expected = torch.zeros_like(embedding.weight)
    for b in range(5):
        for t in range(6):
            weight, on = float(w[labels[b, t]]), naive.part(torch.zeros(4, dtype=torch.float64), units)
            vector = embedding.weight[ids[b, t]].detach().clone().requires_grad_()
            seen = vector * (1 - on) if mode == "forward" and weight == 0 else vector
            model[1](seen).pow(3).sum().backward()
            if ids[b, t]:
                expected[ids[b, t]] += vector.grad * (1 - on + on * weight)
    torch.testing.assert_close(embedding.weight.grad, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_the_table_of_what_a_mask_masks(mode):
    """Which gradients a mask scales, for unit j of z = tanh(W x + b), y = U z, with a residual path around it."""
    model, x = make_model(blocks=1), torch.randn(1, 3, dtype=torch.float64)
    block, w = model[1], -0.5
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    plain = dict(zip(dict(model.named_parameters()), plain, strict=True))
    at = {"activation": ("1.act", "output"), "forward": ("1.act", "output"), "parameter": ("1.up", "output")}[mode]
    sites = {"z": Site(at=at[1], units=[2], module=at[0])}
    with GradientRouter(model, sites, table_of(torch.tensor([[w]]), ("z",)), mode) as router, router(torch.tensor([0])):
        model(x).square().sum().backward()
    ours = grads(model)
    for name in ("1.up.weight", "1.up.bias"):
        torch.testing.assert_close(ours[name][2], w * plain[name][2])  # incoming weights and bias
        torch.testing.assert_close(ours[name][[0, 1, 3, 4, 5]], plain[name][[0, 1, 3, 4, 5]])
    torch.testing.assert_close(ours["1.down.weight"], plain["1.down.weight"])  # outgoing weights
    torch.testing.assert_close(ours["2.weight"], plain["2.weight"])  # downstream
    upstream = ours["0.weight"] - plain["0.weight"]
    if mode == "parameter":
        assert not upstream.any()
    else:  # the path through the unit is weighted, the residual path is not
        z = block.act(block.up(model[0](x))).detach()
        through = torch.autograd.grad(
            (model[2](model[0](x).detach() + block.down(torch.cat(
                [z[:, :2], block.act(block.up(model[0](x)))[:, 2:3], z[:, 3:]], 1)))).square().sum(),
            model[0].weight,
        )[0]  # fmt: skip
        torch.testing.assert_close(upstream, (w - 1) * through)


@pytest.mark.parametrize("mode", MODES)
def test_all_ones_is_plain_training(mode):
    plain, ours = make_model(), make_model()
    x, y = torch.randn(20, 8, 3, dtype=torch.float64), torch.randn(20, 8, 2, dtype=torch.float64)
    sites = {"1.up": Site(units=slice(0, 3)), "3": Site(at="input")}
    router = GradientRouter(ours, sites, RouteTable({"a": {}}, ("1.up", "3")), mode)
    optimizers = [torch.optim.AdamW(model.parameters(), 1e-2) for model in (plain, ours)]
    with router:
        for i in range(20):
            (plain(x[i]) - y[i]).square().mean().backward()
            with router(torch.zeros(8, dtype=torch.int64)):
                (ours(x[i]) - y[i]).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


def test_tied_weights_are_declared_or_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    model, table, ids = Tied().double(), RouteTable({"a": {"embed": 0.0}}, ("embed",)), torch.tensor([[2]])
    with pytest.raises(ValueError, match=r"'embed' are tied to head.weight.*Site\(tied=True\)"):
        GradientRouter(model, {"embed": Site()}, table, "parameter")
    as_head = model.head(model.embed(ids).detach()).square().sum()
    (as_head,) = torch.autograd.grad(as_head, model.head.weight)
    with GradientRouter(model, {"embed": Site(tied=True)}, table, "parameter") as router:
        with router(torch.tensor([0])):
            model(ids).square().sum().backward()
        torch.testing.assert_close(model.embed.weight.grad, as_head)
        optimizer = torch.optim.AdamW(model.parameters())
        before = model.embed.weight.detach().clone()
        with router.excluded(optimizer):
            optimizer.step()
    assert not torch.equal(model.embed.weight, before), "it learns as the head"


def test_weights_in_place_of_labels():
    x, labels = batch()
    ours, other = make_model(), make_model()
    with GradientRouter(ours, SITES, TABLE) as router, router(labels):
        ours(x).square().sum().backward()
    weights = dict(zip(TABLE.modules, TABLE.weights(labels).T, strict=True))
    with GradientRouter(other, SITES, TABLE) as router, router(weights=weights):
        other(x).square().sum().backward()
    assert_equal(grads(ours), grads(other), atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_two_routers_are_one_with_both_sites(mode):
    x, labels = batch()
    one, two = make_model(), make_model()
    with GradientRouter(one, SITES, TABLE, mode) as router, router(labels):
        one(x).square().sum().backward()
    first, second = (GradientRouter(two, {name: site}, TABLE, mode) for name, site in SITES.items())
    with first, second, first(labels), second(labels):
        two(x).square().sum().backward()
    assert_equal(grads(two), grads(one))


def test_evaluation_needs_no_labels():
    model, (x, _) = make_model(), batch()
    expected = model(x)
    for mode in MODES:
        with GradientRouter(model, SITES, TABLE, mode), torch.no_grad():
            assert torch.equal(model(x), expected)


T = RouteTable({"a": {}}, ("1.up", "1"))


@pytest.mark.parametrize(
    ("sites", "mode", "message"),
    [
        ({}, "activation", "at least one place"),
        ({"1.up": Site()}, "both", "mode must be one of activation, parameter, forward, got 'both'"),
        ({"1.pu": Site(column="1.up")}, "activation", "no module '1.pu'; the nearest are 1.up"),
        ({"2.up": Site()}, "activation", "the table has no column '2.up'; it has 1.up, 1"),
        ({"1.up": Site(at="inside")}, "activation", "at must be one of input, output, bias, got 'inside'"),
        ({"1.up": Site(units=slice(4, 7))}, "activation", r"units slice\(4, 7, None\) must .* of the 6 units"),
        ({"1.up": Site(units=[6])}, "activation", r"units \[6\] must select .* of the 6 units at its output"),
        ({"1.up": Site(units=[])}, "parameter", r"units \[\] must select at least one"),
        ({"1": Site()}, "parameter", "routes only Linear and Embedding, but '1' is a Residual"),
    ],
)
def test_sites_that_cannot_be(sites, mode, message):
    with pytest.raises(ValueError, match=message):
        GradientRouter(make_model(), sites, T, mode)


@pytest.mark.parametrize("mode", MODES)
def test_labels_that_cannot_be(mode):
    model, (x, labels) = make_model(), batch()
    router = GradientRouter(model, SITES, TABLE, mode)
    with pytest.raises(RuntimeError, match="not attached"), router(labels):
        pass
    with router:
        with pytest.raises(RuntimeError, match=r"'1.up'.* without labels"):
            model(x)
        wanted = r"site '1.up': labels of shape \(11,\) must match .* which has shape \(12, "
        with pytest.raises(ValueError, match=wanted), router(labels[1:]):
            model(x)
        with pytest.raises(ValueError, match=r"must be integers, got torch.float64"), router(labels.double()):
            pass
        with pytest.raises(ValueError, match=r"must lie in -1 … 1"), router(labels + 2):
            pass
        with pytest.raises(ValueError, match="either labels or weights"), router():
            pass
        with (
            pytest.raises(ValueError, match=r"exactly \['1.up', 'down'\], got \['up'\]"),
            router(weights={"up": labels}),
        ):
            pass
        with router(labels):
            with pytest.raises(RuntimeError, match="another batch"), router(labels):
                pass
            model(x)
        with pytest.raises(RuntimeError, match=r"still attached to '1.up'"), GradientRouter(model, SITES, TABLE, mode):
            pass
        with pytest.raises(RuntimeError, match="no tensor reached the sites"), router(labels):
            model[0](x)
    with router, router(labels):
        model(x)


def test_units_beyond_a_width_that_only_the_forward_pass_knows():
    model, (x, labels) = make_model(), batch()
    router = GradientRouter(model, {"1.up": Site(units=[9], module="1.act")}, T)
    with pytest.raises(ValueError, match=r"units \[9\] must .* of the 6 units"), router, router(labels * 0):
        model(x)


@pytest.mark.parametrize("mode", MODES)
def test_all_positions_in_one_dimension_are_routed_as_positions(mode):
    """As in OPT's MLPs, which see (B * T, D)."""
    found, (x, labels) = [], batch()
    for shape in ((3, 4), (12,)):
        model = make_model()
        with GradientRouter(model, SITES, TABLE, mode) as router, router(labels.view(3, 4)):
            model(x.view(*shape, 3)).square().sum().backward()
        found.append(grads(model))
    assert_equal(*found)


def test_a_layer_with_routed_parameters_may_be_added_to_in_place():
    """As in Falcon's blocks."""
    found, (x, labels) = [], batch()
    for add in (torch.Tensor.add, torch.Tensor.add_):
        model = make_model()
        with GradientRouter(model, SITES, TABLE, "parameter") as router, router(labels):
            model(x)
            add(model[1].up(model[0](x)), 1.0).square().sum().backward()
        found.append(grads(model))
    assert_equal(*found)


def test_a_bias_alone_is_routed_only_where_there_is_one():
    model, table = make_model(), table_of(torch.tensor([[0.0]]), ("b",))
    x, labels = batch()
    sites = {"b": Site(at="bias", module="1.up")}
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with GradientRouter(model, sites, table, "parameter") as router:
        with router(torch.zeros_like(labels)):
            model(x).square().sum().backward()
        with router.excluded(optimizer):
            optimizer.step()
    kept = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert kept == ["1.up.bias"]
    for site, mode in ((sites["b"], "activation"), (Site(at="bias", module="1.down"), "parameter")):
        with pytest.raises(ValueError, match="a bias is routed only in mode 'parameter', at a linear layer that has"):
            GradientRouter(model, {"b": site}, table, mode)
