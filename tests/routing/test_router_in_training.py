"""A routed model in real training: gradient accumulation, activation checkpointing, autocast, compilation,
optimizers, several processes, and other hooks on the model."""

import copy
import os
import socket
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from routed_rl.routing import GradientRouter, RouteTable, Site
from tests import forks
from tests.routing.routed_models import MODES, SITES, TABLE, assert_equal, batch, grads, make_model


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
    # The forward pass uses one module twice: its gradient is the sum over both uses.
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
    """A model that is compiled after attaching is one graph and follows each batch's labels, until detached."""
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
def test_attached_after_compilation(mode):
    """Whether the model itself was compiled, or an unrouted one of the same class."""
    x, labels = batch()
    for compile_ in (torch.compile, lambda m: m.compile(backend="aot_eager") or m):
        with pytest.raises(RuntimeError, match="is compiled and would ignore the router"):
            GradientRouter(compile_(make_model()), {f"_orig_mod.{n}": s for n, s in SITES.items()}, TABLE, mode)
    for is_model in (True, False):
        torch._dynamo.reset()
        torch._dynamo.config.skip_nnmodule_hook_guards = True  # as in a new process
        model, other, plain = make_model(), make_model(), make_model()
        compiled = torch.compile(model, backend="aot_eager")
        earlier = compiled if is_model else torch.compile(plain, backend="aot_eager")
        earlier(x).square().sum().backward()
        unrouted = grads(model if is_model else plain)
        model.zero_grad()
        with GradientRouter(other, SITES, TABLE, mode) as reference, reference(labels):
            other(x).square().sum().backward()
        with GradientRouter(model, SITES, TABLE, mode) as router, router(labels):
            compiled(x).square().sum().backward()
            assert_equal(grads(model), grads(other))
            plain.zero_grad()
            torch.compile(plain, backend="aot_eager")(x).square().sum().backward()
        assert_equal(grads(plain), unrouted)


def averaged(model):
    return AveragedModel(model).module


@pytest.mark.parametrize("make_copy", [copy.deepcopy, averaged, lambda model: copy.deepcopy(copy.deepcopy(model))])
@pytest.mark.parametrize("mode", MODES)
def test_a_copy_made_in_the_block_is_free_and_has_its_own_weights(mode, make_copy):
    model, x = make_model(), batch()[0]
    model[1].up.forward = partial(type(model[1].up).forward, model[1].up)  # as accelerate does
    with GradientRouter(model, SITES, TABLE, mode):
        copied = make_copy(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        plain = make_model()
        for run in (copied, plain):
            run(x).square().sum().backward()
        assert_equal(grads(copied), grads(plain))
    copied(x).sum().backward()
    copied.zero_grad()
    with GradientRouter(copied, SITES, TABLE, mode) as router, router(batch()[1]):
        copied(x).square().sum().backward()
    plain.zero_grad()
    with GradientRouter(plain, SITES, TABLE, mode) as router, router(batch()[1]):
        plain(x).square().sum().backward()
    assert_equal(grads(copied), grads(plain))


@pytest.mark.parametrize("mode", MODES)
def test_a_model_is_saved_in_the_block_as_a_state_dict_and_not_as_an_object(mode, tmp_path):
    model, other = make_model(), make_model(seed=1)
    with GradientRouter(model, SITES, TABLE, mode):
        with pytest.raises(TypeError, match="the model is routed or steered within a 'with' block: leave the block"):
            torch.save(model, tmp_path / "model.pt")
        other.load_state_dict(model.state_dict())
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    torch.save(model, tmp_path / "model.pt")


@pytest.mark.parametrize("kind", [{"foreach": True}, {"fused": True}, {}])
@pytest.mark.parametrize("mode", MODES)
def test_exact_exclusion(mode, kind):
    """Parameters that no label of a step may teach keep their bits and optimizer state; all others move."""
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
    step(half_taught)  # one of two micro-batches teaches the site, so all parameters move and gain momentum
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
    """Train for twenty steps; in every fourth step no data teaches the first site."""
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
    del run  # whose end waits for gloo's threads, which may wait for Python's lock, if it ends the group
    torch.distributed.destroy_process_group()


def some_taught_by_one():
    """A batch in which only one of two processes has data that teaches the first site."""
    x, labels = batch()
    labels[1::2] = 0
    return x, labels


def test_two_processes_are_one(tmp_path):
    x, labels = some_taught_by_one()
    assert (labels[::2] != 0).any()
    forks.spawn(in_a_process, (free_port(), tmp_path), nprocs=2)
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
