"""Models, sites and tables for the tests of the router."""

import torch
from torch import nn

from routed_rl.routing import RouteTable, Site

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
    """A table in which label ``i`` has row ``i`` of the weights (L, S)."""
    rows = {f"label {i}": dict(zip(columns, row.tolist(), strict=True)) for i, row in enumerate(weights)}
    return RouteTable(rows, columns)


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, expected, atol=1e-10):
    for name, gradient in expected.items():
        torch.testing.assert_close(ours.get(name, torch.zeros_like(gradient)), gradient, rtol=0, atol=atol, msg=name)


SITES = {"1.up": Site(units=slice(0, 3)), "down": Site(at="input", units=[1, 4], module="2.down")}
TABLE = RouteTable({"forget": {"1.up": 0.0, "down": -0.75}, "retain": {"down": 0.0}}, ("1.up", "down"))


def batch(n=12, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 3, dtype=torch.float64), torch.randint(-1, 2, (n,))
