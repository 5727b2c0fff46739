"""Exact exclusion: excluded parameters, and their optimizer state, do not change by one bit."""

import copy

import pytest
import torch
from torch import nn

from routed_rl.routing import GradientRouter, RouteTable, Site, excluded

OPTIMIZERS = {
    "adam": lambda p, **kw: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, **kw),
    "adamw": lambda p, **kw: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, amsgrad=True, **kw),
    "sgd": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, **kw),
}
IMPLEMENTATIONS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def snapshot(optimizer, parameter):
    state = {k: v.clone() for k, v in optimizer.state[parameter].items() if isinstance(v, torch.Tensor)}
    return parameter.detach().clone(), state


def accumulate(model, batches):
    for x in batches:
        (model(x).pow(2).mean() / len(batches)).backward()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
class TestEveryOptimizer:
    def setup_method(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))

    def trained(self, name, implementation, steps=3):
        optimizer = OPTIMIZERS[name](self.model.parameters(), **IMPLEMENTATIONS[implementation])
        for _ in range(steps):
            optimizer.zero_grad()
            accumulate(self.model, torch.randn(2, 8, 4))
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            optimizer.step()
        return optimizer

    def test_whole_parameters(self, name, implementation):
        optimizer = self.trained(name, implementation)
        kept = list(self.model[0].parameters())
        before = [snapshot(optimizer, p) for p in kept]
        moved = self.model[2].weight.detach().clone()
        for _ in range(4):
            optimizer.zero_grad()
            accumulate(self.model, torch.randn(2, 8, 4))
            gradients = [p.grad for p in kept]
            with excluded(optimizer, kept):
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
                optimizer.step()
            assert all(p.grad is g for p, g in zip(kept, gradients, strict=True)), "gradients come back"
        for parameter, (value, state) in zip(kept, before, strict=True):
            assert torch.equal(parameter, value)
            assert all(torch.equal(optimizer.state[parameter][k], v) for k, v in state.items())
        assert not torch.equal(self.model[2].weight, moved)

    @pytest.mark.parametrize("steps_before", [0, 3])
    def test_entries_of_a_parameter(self, name, implementation, steps_before):
        optimizer = self.trained(name, implementation, steps_before)
        weight = self.model[0].weight
        mask = torch.zeros_like(weight, dtype=torch.bool)
        mask[:2] = True
        value, state = snapshot(optimizer, weight)
        for _ in range(4):
            optimizer.zero_grad()
            accumulate(self.model, torch.randn(2, 8, 4))
            with excluded(optimizer, entries={weight: mask}):
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
                optimizer.step()
        assert torch.equal(weight[mask], value[mask]) and not torch.equal(weight[~mask], value[~mask])
        for key, tensor in optimizer.state[weight].items():
            if isinstance(tensor, torch.Tensor) and tensor.shape == weight.shape:
                expected = state[key][mask] if key in state else torch.zeros(int(mask.sum()))
                assert torch.equal(tensor[mask], expected), key

    def test_the_rest_steps_as_if_the_excluded_did_not_exist(self, name, implementation):
        optimizer = self.trained(name, implementation)
        twin = copy.deepcopy(self.model)
        twin_optimizer = OPTIMIZERS[name](twin[2].parameters(), **IMPLEMENTATIONS[implementation])
        state = {i: optimizer.state[p] for i, p in enumerate(self.model[2].parameters())}
        twin_optimizer.load_state_dict(
            copy.deepcopy({"state": state, "param_groups": twin_optimizer.state_dict()["param_groups"]})
        )
        x = torch.randn(8, 4)
        for model, opt, context in (
            (self.model, optimizer, excluded(optimizer, self.model[0].parameters())),
            (twin, twin_optimizer, excluded(twin_optimizer)),
        ):
            opt.zero_grad()
            model.zero_grad()
            model(x).pow(2).mean().backward()
            with context:
                nn.utils.clip_grad_norm_([p for group in opt.param_groups for p in group["params"]], 0.5)
                opt.step()
        for a, b in zip(self.model[2].parameters(), twin[2].parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_zero_gradient_is_not_an_exclusion():
    """Momentum and weight decay move a parameter whose gradient is zero: the reason for ``excluded``."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert not torch.equal(weight, torch.ones(3))


def test_foreign_parameters_and_bad_masks_are_refused():
    weight, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))
    optimizer = torch.optim.Adam([weight])
    with pytest.raises(ValueError, match=r"\(5,\)"), excluded(optimizer, [other]):
        pass
    for mask in (torch.ones(2, dtype=torch.bool), torch.ones(3)):
        with pytest.raises(ValueError, match="mask"), excluded(optimizer, entries={weight: mask}):
            pass


def test_a_site_without_parameters_is_said_to_protect_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    router = GradientRouter(model, {"kept": Site(module="1")}, RouteTable({"a": {"kept": 0}}, ("kept",)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with router:
        with router(torch.tensor([0])):
            model(torch.ones(1, 2)).sum().backward()
        said = "site 'kept' is at the ReLU '1', which has no parameters"
        with pytest.warns(UserWarning, match=said), router.excluded(optimizer):
            optimizer.step()


def test_labels_by_name_are_refused_with_what_to_pass():
    with pytest.raises(ValueError, match=r"labels must be a tensor of label ids.*got \['a'\]"):
        RouteTable({"a": {}}, ("kept",)).weights(["a"])
