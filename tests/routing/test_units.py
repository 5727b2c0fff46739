"""Hidden units: ablating equals removing, adding leaves the outputs the same, and both can be undone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from routed_rl.routing import Hidden, ablate, add_units, remove_units


class Gated(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6, bias=bias), nn.Linear(4, 6, bias=bias), nn.Linear(6, 3)

    def forward(self, x):
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


class Fused(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.both, self.down = linear(4, 12), linear(6, 3)

    def forward(self, x):
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(torch.sigmoid(gate) * up)


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)), torch.randn(5, 4)


def gated():
    return Gated(), torch.randn(5, 2, 4)


def fused():
    return Fused(nn.Linear), torch.randn(5, 2, 4)


def fused_gpt2s():
    return Fused(lambda inputs, outputs: Conv1D(outputs, inputs)), torch.randn(5, 2, 4)


def gpt2s():
    return nn.Sequential(Conv1D(6, 4), nn.Sigmoid(), Conv1D(3, 6)), torch.randn(5, 2, 4)


def convolution():
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 3, 2, bias=False)]
    return nn.Sequential(*layers), torch.randn(5, 2, 5, 5)


def convolution_1d():
    return nn.Sequential(nn.Conv1d(2, 6, 3, bias=False), nn.Tanh(), nn.Conv1d(6, 3, 1)), torch.randn(5, 2, 7)


CASES = {
    "mlp": (mlp, Hidden(("0",), "2")),
    "gpt2s": (gpt2s, Hidden(("0",), "2")),
    "gated": (gated, Hidden(("gate", "up"), "down")),
    "fused": (fused, Hidden(("both",), "down", parts=2)),
    "fused_gpt2s": (fused_gpt2s, Hidden(("both",), "down", parts=2)),
    "convolution": (convolution, Hidden(("0", "1"), "3")),
    "convolution_1d": (convolution_1d, Hidden(("0",), "2")),
}


def make(name):
    torch.manual_seed(0)
    model, x = CASES[name][0]()
    model, x = model.double(), x.double()
    model(x)  # so that norms have seen something
    return model.eval(), x, CASES[name][1]


def of_units(module, at):
    """A layer's weight, with the units in the first dimension."""
    return module.weight.detach().movedim(int((at == "input") != isinstance(module, Conv1D)), 0)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), units=st.sets(st.integers(0, 5), min_size=1, max_size=5))
def test_a_mask_is_a_cut_and_can_be_taken_off(name, units):
    model, x, hidden = make(name)
    whole = model(x)
    handle = ablate(model, hidden, sorted(units))
    masked = model(x)
    handle.remove()
    assert torch.equal(model(x), whole)
    remove_units(model, hidden, sorted(units))
    torch.testing.assert_close(model(x), masked)
    assert hidden.width(model) == 6 - len(units)
    assert not torch.allclose(masked, whole)


@pytest.mark.parametrize("name", CASES)
def test_added_units_change_nothing_until_they_learn_and_go_again(name):
    model, x, hidden = make(name)
    before, state, old = model(x), {k: v.clone() for k, v in model.state_dict().items()}, shapes(model)
    added = add_units(model, hidden, 4, torch.Generator().manual_seed(0))
    assert added == slice(6, 10) and hidden.width(model) == 10
    torch.testing.assert_close(model(x), before)
    producer, consumer = model.get_submodule(hidden.producers[0]), model.get_submodule(hidden.consumer)
    assert of_units(producer, "output")[hidden.outputs(added, 10)].std() > 0.01, "but they can learn"
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x).square().sum().backward()
    optimizer.step()
    assert of_units(consumer, "input")[added].abs().max() > 0
    other, _, _ = make(name)
    add_units(other, hidden, 4, torch.Generator().manual_seed(0))
    remove_units(other, hidden, added)
    assert shapes(other) == old
    assert all(torch.equal(tensor, state[key]) for key, tensor in other.state_dict().items())


def test_a_fused_layer_is_a_gate_and_an_up_projection():
    """The same units are removed from both, and added to both."""
    (separate, x, two), (model, _, one) = make("gated"), make("fused")
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(model.both, name).copy_(torch.cat([getattr(separate.gate, name), getattr(separate.up, name)]))
            getattr(model.down, name).copy_(getattr(separate.down, name))
    for one_model, hidden in ((separate, two), (model, one)):
        remove_units(one_model, hidden, [1, 4])
        assert add_units(one_model, hidden, 2) == slice(4, 6)
    assert one.outputs(slice(4, 6), 6) == [4, 5, 10, 11] and two.outputs(slice(4, 6), 6) == slice(4, 6)
    assert model.both.out_features == 12 and model.down.in_features == 6
    torch.testing.assert_close(model(x), separate(x))
    for name in ("weight", "bias"):
        for half, whole in zip(getattr(model.both, name).chunk(2), (separate.gate, separate.up), strict=True):
            assert torch.equal(half[:4], getattr(whole, name)[:4])


def test_new_units_start_as_torch_starts_them():
    model = nn.Sequential(nn.Linear(100, 3), nn.ReLU(), nn.Linear(3, 1))
    added = add_units(model, Hidden(("0",), "2"), 400)
    new = model[0].weight[added].detach()
    assert new.abs().max() <= 0.1 and float(new.std()) == pytest.approx(0.1 / 3**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("hidden", "units", "message"),
    [
        (Hidden(("0",), "1"), [0], r"'1' must be a Linear or a convolution without groups, got Sigmoid"),
        (Hidden(("2",), "2"), [0], r"the same width in all modules, got \[\('2', 3\), \('2', 6\)\]"),
        (Hidden(("0",), "2", parts=2), [0], r"in all modules \(times 2 in producers\), got \[\('0', 6\), \('2', 6\)\]"),
        (Hidden((), "2"), [0], "at least one producer"),
        (Hidden(("O",), "2"), [0], "no module 'O'; the nearest are"),
        (Hidden(("0",), "2"), [6], r"units \[6\] must .* of the 6 units"),
        (Hidden(("0",), "2"), [], r"units \[\] must select"),
        (Hidden(("0",), "2"), slice(None), "cannot remove all 6 units"),
    ],
)
def test_units_that_cannot_be_removed(hidden, units, message):
    model, x, _ = make("mlp")
    before = model(x)
    with pytest.raises(ValueError, match=message):
        remove_units(model, hidden, units)
    assert torch.equal(model(x), before)


def test_units_that_cannot_be_added():
    model, _, hidden = make("mlp")
    with pytest.raises(ValueError, match="at least one unit must be added, got 0"):
        add_units(model, hidden, 0)
