"""GPT-2's linear layers, with weights (in, out), behave like torch's, with weights (out, in)."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from routed_rl.routing import GradientRouter, Hidden, RouteTable, Site, ablate, add_units, remove_units
from tests.routing.routed_models import MODES

HIDDEN = Hidden(("0",), "2")
TABLE = RouteTable({"none": {"into": 0.0, "out": 0.0}, "some": {"into": -0.75, "out": 0.5}}, ("into", "out"))
SITES = {
    "all of a layer": {"into": Site(module="0"), "out": Site(at="input", module="2")},
    "units": {"into": Site(units=slice(0, 3), module="0"), "out": Site(at="input", units=[1, 4], module="2")},
}


def pair():
    """The same MLP twice: with GPT-2's layers and with torch's."""
    torch.manual_seed(0)
    theirs = nn.Sequential(Conv1D(6, 4), nn.Tanh(), Conv1D(3, 6)).double()
    ours = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for i in (0, 2):
            theirs[i].weight.copy_(ours[i].weight.T)
            theirs[i].bias.copy_(ours[i].bias)
    return theirs, ours


def assert_same(theirs, ours, of=lambda parameter: parameter):
    for i in (0, 2):
        torch.testing.assert_close(of(theirs[i].weight), of(ours[i].weight).T, rtol=0, atol=1e-12)
        torch.testing.assert_close(of(theirs[i].bias), of(ours[i].bias), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sites", SITES)
def test_gradients(sites, mode):
    models, x = pair(), torch.randn(5, 2, 4, dtype=torch.float64)
    for model in models:
        plain = model(x)
        with GradientRouter(model, SITES[sites], TABLE, mode) as router, router(torch.tensor([-1, 0, 1, 0, 1])):
            routed = model(x)
            assert mode == "forward" or torch.equal(routed, plain)
            routed.pow(3).sum().backward()
    assert_same(*models, of=lambda parameter: parameter.grad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sites", SITES)
def test_exact_exclusion(sites, mode):
    models, x = pair(), torch.randn(5, 4, dtype=torch.float64)
    for model in models:
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
        with GradientRouter(model, SITES[sites], TABLE, mode) as router:
            for _ in range(3):
                with router(torch.zeros(5, dtype=torch.int64)):
                    model(x).pow(3).sum().backward()
                with router.excluded(optimizer):
                    optimizer.step()
        rows = slice(None) if sites == "all of a layer" else slice(0, 3)
        into, was = (weight if model is models[1] else weight.T for weight in (model[0].weight, before[0]))
        assert torch.equal(into[rows], was[rows]) and torch.equal(model[0].bias[rows], before[1][rows])
        assert sites == "all of a layer" or not (into[3:] == was[3:]).any()
    assert_same(*models)


def test_cuts_and_additions():
    models, x = pair(), torch.randn(5, 2, 4, dtype=torch.float64)
    for model in models:
        before = model(x)
        assert add_units(model, HIDDEN, 3, torch.Generator().manual_seed(0)) == slice(6, 9)
        torch.testing.assert_close(model(x), before)
        handle = ablate(model, HIDDEN, [1, 4, 6, 7, 8])
        silenced = model(x)
        handle.remove()
        remove_units(model, HIDDEN, [1, 4, 6, 7, 8])
        torch.testing.assert_close(model(x), silenced)
    assert_same(*models)
    theirs = models[0]
    assert (theirs[0].nx, theirs[0].nf, theirs[2].nx, theirs[2].nf) == (4, 4, 4, 3)


def test_what_is_called_so_and_is_another_thing_is_refused():
    class Conv1D(nn.Module):
        pass

    model = nn.Sequential(Conv1D())
    with pytest.raises(ValueError, match="routes only Linear and Embedding, but '0' is a Conv1D"):
        GradientRouter(model, {"into": Site(module="0")}, TABLE, "parameter")
    with pytest.raises(ValueError, match="must be a Linear or a convolution"):
        remove_units(model, Hidden(("0",), "0"), [0])
