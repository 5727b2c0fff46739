"""Any module routed as it is: against routing one example at a time, and under all that training does to a model."""

import copy
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from routed_rl.routing import GradientRouter, RouteTable, Site
from tests.routing import naive

MODES = ("activation", "parameter", "forward")


class Residual(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


def make_model(seed=0, width=4, hidden=6, blocks=2):
    torch.manual_seed(seed)
    layers = [nn.Linear(3, width), *(Residual(width, hidden) for _ in range(blocks)), nn.Linear(width, 2)]
    return nn.Sequential(*layers).double()


def table_of(weights, columns):
    """A table whose label ``i`` has row ``i`` of weights (L, S)."""
    rows = {f"label {i}": dict(zip(columns, row.tolist(), strict=True)) for i, row in enumerate(weights)}
    return RouteTable(rows, columns)


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, expected, atol=1e-10):
    for name, gradient in expected.items():
        torch.testing.assert_close(ours.get(name, torch.zeros_like(gradient)), gradient, rtol=0, atol=atol, msg=name)


WEIGHTS = st.sampled_from([0.0, 1.0, -0.75, 0.5, 2.0])


def places(width, hidden):
    """Where :func:`make_model` may be routed: module, at, units."""
    return [
        *(("0", "output", width), ("0", "input", 3), ("1", "output", width), ("2", "input", width)),
        *(("1.up", "output", hidden), ("1.down", "input", hidden), ("1.act", "output", hidden)),
        *(("1.down", "output", width), ("2.up", "input", width), ("3", "input", width)),
    ]


@st.composite
def routed(draw, layers_alone):
    """A model's shape, sites in it (also within and on one another), weights (B, S) and a seed."""
    width, hidden = draw(st.integers(2, 5)), draw(st.integers(2, 7))
    possible = [p for p in places(width, hidden) if not layers_alone or p[0] not in ("1", "2", "1.act")]
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
    # One position each, so that an example alone is a position alone.
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
    """Each occurrence of a token by its own label, the padding by none."""
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
    """Section 1.3 of the paper's notes, row by row, for unit j of z = tanh(W x + b), y = U z, with a way around."""
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
    else:  # the path through the unit is weighted, the one around it is not
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


SITES = {"1.up": Site(units=slice(0, 3)), "down": Site(at="input", units=[1, 4], module="2.down")}
TABLE = RouteTable({"forget": {"1.up": 0.0, "down": -0.75}, "retain": {"down": 0.0}}, ("1.up", "down"))


def batch(n=12, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 3, dtype=torch.float64), torch.randint(-1, 2, (n,))


@pytest.mark.parametrize("mode", MODES)
def test_accumulation_checkpointing_and_a_module_used_twice(mode):
    x, labels = batch()
    expected = make_model()
    with GradientRouter(expected, SITES, TABLE, mode) as router, router(labels):
        expected(x).square().sum().backward()
    parts = make_model()
    with GradientRouter(parts, SITES, TABLE, mode) as router:
        for start in range(0, 12, 5):
            with router(labels[start : start + 5]):
                parts(x[start : start + 5]).square().sum().backward()
    assert_equal(grads(parts), grads(expected))
    for reentrant in (False, True):
        saved = make_model()
        with GradientRouter(saved, SITES, TABLE, mode) as router, router(labels):
            h = saved[0](x)
            for layer in saved[1:]:
                h = checkpoint(layer, h, use_reentrant=reentrant)
            h.square().sum().backward()
        assert_equal(grads(saved), grads(expected))
    # A module used twice in a pass is two places: the gradient is the sum over both.
    twice, apart = make_model(blocks=1), make_model(blocks=1)
    copied = nn.Sequential(apart[0], apart[1], copy.deepcopy(apart[1]), apart[2])
    sites = {"1.up": SITES["1.up"]}
    table = RouteTable({"forget": {"1.up": 0.0}, "retain": {}}, ("1.up", "2.up"))
    with GradientRouter(twice, sites, table, mode) as router, router(labels):
        twice[2](twice[1](twice[1](twice[0](x)))).square().sum().backward()
    both = RouteTable({"forget": {"1.up": 0.0, "2.up": 0.0}, "retain": {}}, ("1.up", "2.up"))
    with GradientRouter(copied, {**sites, "2.up": SITES["1.up"]}, both, mode) as router, router(labels):
        copied(x).square().sum().backward()
    for name, gradient in copied[1].named_parameters():
        other = dict(copied[2].named_parameters())[name]
        torch.testing.assert_close(dict(twice[1].named_parameters())[name].grad, gradient.grad + other.grad)


@pytest.mark.parametrize("mode", MODES)
def test_autocast(mode):
    x, labels = batch()
    model, plain = make_model().float(), make_model().float()
    with GradientRouter(plain, SITES, TABLE, mode) as router, router(labels):
        plain(x.float()).square().sum().backward()
    with GradientRouter(model, SITES, TABLE, mode) as router, router(labels), torch.autocast("cpu", torch.bfloat16):
        model(x.float()).float().square().sum().backward()
    for name, gradient in grads(plain).items():
        ours = dict(model.named_parameters())[name].grad
        assert ours.dtype == torch.float32
        assert (ours - gradient).norm() <= 0.05 * gradient.norm()
    assert not model[1].up.weight.grad[:3, :].equal(plain[1].up.weight.grad[:3, :]), "it did compute in bfloat16"


@pytest.mark.parametrize("mode", MODES)
def test_compiled(mode):
    """Attached, then compiled: in one graph, with the labels of each batch; plain again when the router has left."""
    torch._dynamo.reset()
    model, other = make_model(), make_model()
    x, labels = batch()
    router, reference = (GradientRouter(m, SITES, TABLE, mode) for m in (model, other))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    with router:
        for these in (labels, torch.zeros_like(labels), -torch.ones_like(labels)):
            with router(these):
                compiled(x).square().sum().backward()
            with reference, reference(these):
                other(x).square().sum().backward()
            assert_equal(grads(model), grads(other))
            model.zero_grad()
            other.zero_grad()
    compiled(x).square().sum().backward()
    other(x).square().sum().backward()
    assert_equal(grads(model), grads(other))


@pytest.mark.parametrize("mode", MODES)
def test_attached_after_compilation_never_does_nothing(mode):
    x, labels = batch()
    for compile_ in (torch.compile, lambda m: m.compile(backend="aot_eager") or m):
        with pytest.raises(RuntimeError, match="is compiled, and would not notice a router"):
            GradientRouter(compile_(make_model()), {f"_orig_mod.{n}": s for n, s in SITES.items()}, TABLE, mode)
    # Behind our back: the plain model is routed, one that was compiled before is run.
    torch._dynamo.reset()
    model, other = make_model(), make_model()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x).sum().backward()
    model.zero_grad()
    with GradientRouter(other, SITES, TABLE, mode) as reference, reference(labels):
        other(x).square().sum().backward()
    try:
        with GradientRouter(model, SITES, TABLE, mode) as router, router(labels):
            compiled(x).square().sum().backward()
    except RuntimeError as error:
        assert "nothing passed the sites" in str(error)
    else:
        assert_equal(grads(model), grads(other))


@pytest.mark.parametrize("kind", [{"foreach": True}, {"fused": True}, {}])
@pytest.mark.parametrize("mode", MODES)
def test_exact_exclusion(mode, kind):
    """What no label of a step may teach does not move by one bit, nor does its optimizer state; the rest does."""
    model = make_model()
    table = RouteTable({"a": {"0": 0.0, "rows": 0.0, "columns": 0.0}}, ("0", "rows", "columns"))
    sites = {
        "0": Site(),
        "rows": Site(units=slice(1, 4), module="1.up"),
        "columns": Site(at="input", units=[0, 5], module="2.down"),
    }
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1, **kind)
    x, _ = batch()
    router = GradientRouter(model, sites, table, mode)

    def step(labels):
        with router:
            for half in (slice(0, 6), slice(6, 12)):  # accumulated
                with router(labels[half]):
                    model(x[half]).square().sum().backward()
            with router.excluded(optimizer):
                optimizer.step()
            optimizer.zero_grad()

    def snapshot():
        state = {name: dict(optimizer.state[p]) for name, p in model.named_parameters()}
        tensors = {(n, k): v.clone() for n, entry in state.items() for k, v in entry.items() if v.ndim}
        return tensors | {(n, "weight"): p.detach().clone() for n, p in model.named_parameters()}

    half_taught = torch.cat([torch.full((6,), -1), torch.zeros(6, dtype=torch.int64)])
    step(half_taught)  # one micro-batch teaches, so all move, and momentum is left behind
    before = snapshot()
    step(torch.zeros(12, dtype=torch.int64))
    after = snapshot()
    columns = {"activation": [], "parameter": [0, 5], "forward": [0, 5]}[mode]
    kept = {"0.weight": slice(None), "0.bias": slice(None), "1.up.weight": slice(1, 4), "1.up.bias": slice(1, 4)}
    for (name, what), tensor in after.items():
        old = before[name, what]
        if name in kept:
            assert torch.equal(tensor[kept[name]], old[kept[name]]), (name, what)
        if name == "2.down.weight":
            assert torch.equal(tensor[:, columns], old[:, columns]), (name, what)
            assert not torch.equal(tensor[:, 1:5], old[:, 1:5])
        elif name not in ("0.weight", "0.bias"):
            rest = tensor[4:] if name in kept else tensor
            assert not torch.equal(rest, old[4:] if name in kept else old), (name, what)
    step(half_taught)
    assert not torch.equal(model[0].weight, after["0.weight", "weight"])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train(model, run, router, x, labels, scale):
    """Twenty steps, in every fourth of which nothing teaches the first site."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    with router:
        for step in range(20):
            with router(torch.zeros_like(labels) if step % 4 == 3 else labels):
                (scale * run(x).square().sum()).backward()
            with router.excluded(optimizer):
                optimizer.step()
            optimizer.zero_grad()


def in_a_process(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    x, labels = some_taught_by_one()
    for mode in MODES:
        model = make_model()
        run = nn.parallel.DistributedDataParallel(model)
        # Gradients are averaged over processes, so each half of a sum counts twice.
        train(model, run, GradientRouter(model, SITES, TABLE, mode), x[rank::2], labels[rank::2], scale=2 / 12)
        if rank == 0:
            save_file(model.state_dict(), folder / mode)
    torch.distributed.destroy_process_group()


def some_taught_by_one():
    """A batch in which only one of two processes has data that teaches the first site."""
    x, labels = batch()
    labels[1::2] = 0
    return x, labels


def test_two_processes_are_one(tmp_path):
    x, labels = some_taught_by_one()
    assert (labels[::2] != 0).any()
    mp.start_processes(in_a_process, (free_port(), tmp_path), nprocs=2, start_method="spawn")
    for mode in MODES:
        alone = make_model()
        train(alone, alone, GradientRouter(alone, SITES, TABLE, mode), x, labels, scale=1 / 12)
        together = load_file(tmp_path / mode)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_others_hooks_and_forwards_stay(mode):
    model, seen = make_model(), []
    model[1].up.register_forward_hook(lambda *_: seen.append("after"))
    model[1].up.register_forward_pre_hook(lambda *_: seen.append("before"))
    own = model[1].up.forward
    model[1].up.forward = lambda x: seen.append("theirs") or own(x)
    theirs = model[1].up.forward
    before = {name: list(vars(module)) for name, module in model.named_modules()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    x, labels = batch()
    with pytest.raises(KeyError, match="theirs"), GradientRouter(model, SITES, TABLE, mode) as router, router(labels):
        model(x)
        raise KeyError("theirs")
    assert seen[0] == "before" and seen[-1] == "after"
    assert model[1].up.forward is theirs
    assert {name: list(vars(module)) for name, module in model.named_modules()} == before
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    seen.clear()
    model(x)
    assert seen == ["before", "theirs", "after"]


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
        ({"1.up": Site(at="inside")}, "activation", "at must be 'input' or 'output', got 'inside'"),
        ({"1.up": Site(units=slice(4, 7))}, "activation", r"units slice\(4, 7, None\) are not within the 6 units"),
        ({"1.up": Site(units=[6])}, "activation", r"units \[6\] are not within the 6 units at its output"),
        ({"1.up": Site(units=[])}, "parameter", r"units \[\] are not within"),
        ({"1": Site()}, "parameter", "knows Linear and Embedding, and '1' is Residual"),
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
        wanted = r"site '1.up': labels of shape \(11,\) do not fit what passes, \(12, "
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
        with pytest.raises(RuntimeError, match="nothing passed the sites"), router(labels):
            model[0](x)
    with router, router(labels):
        model(x)


def test_units_beyond_a_width_that_only_the_forward_pass_knows():
    model, (x, labels) = make_model(), batch()
    router = GradientRouter(model, {"1.up": Site(units=[9], module="1.act")}, T)
    with pytest.raises(ValueError, match=r"units \[9\] are not within the 6 units"), router, router(labels * 0):
        model(x)
