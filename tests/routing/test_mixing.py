"""Layers that mix the examples of a batch: one example's loss then teaches a site through another one's weights."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from routed_rl.routing import GradientRouter, RouteTable, Site, mixed_sites
from tests.routing.routed_models import MODES

TABLE = RouteTable({"a": {"0": 0.0}, "b": {}}, ("0",))
SITES = {"0": Site()}
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


class Contrast(nn.Module):
    """Compares each example with all."""

    def forward(self, x):
        x = F.normalize(x, dim=-1)
        return x @ x.T


def model_of(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *layers)


MIXING = {
    "batch norm": lambda: model_of(nn.BatchNorm1d(4)),
    "batch norm, later": lambda: model_of(nn.Tanh(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
    "synchronised": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(model_of(nn.BatchNorm1d(4))),
    "contrastive": lambda: model_of(Contrast()),
    "attention over examples": lambda: model_of(nn.MultiheadAttention(4, 1)),
}
APART = {
    "layer norm": lambda: model_of(nn.LayerNorm(4)),
    "group norm": lambda: model_of(nn.GroupNorm(2, 4)),
    "batch norm, frozen": lambda: model_of(nn.BatchNorm1d(4)).eval(),
    "batch norm, before": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Tanh()),
}


def run(model, x):
    if isinstance(model[-1], nn.MultiheadAttention):
        hidden = model[0](x)
        return model[-1](hidden, hidden, hidden)[0]
    return model(x)


@pytest.mark.parametrize("kind", MIXING)
def test_what_mixes_examples_after_a_site_is_found(kind):
    model = MIXING[kind]()
    assert mixed_sites(model, SITES, lambda: run(model, X).square().sum(dim=1)) == ["0"]


@pytest.mark.parametrize("kind", APART)
def test_what_keeps_examples_apart_is_not(kind):
    model = APART[kind]()
    name = "1" if kind == "batch norm, before" else "0"
    sites = {name: Site(), "in": Site(at="input", module=name)}
    assert mixed_sites(model, sites, lambda: model(X).square().sum(dim=1)) == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_positions_of_an_example_may_mix():
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 4), nn.Unflatten(0, (2, 3)), nn.Softmax(dim=1))
    x = torch.randn(2, 3, 3)
    assert mixed_sites(model, {"1": Site()}, lambda: model(x).square().sum(dim=(1, 2))) == []
    with pytest.raises(ValueError, match=r"site '1': its tensor of shape \(6, 4\) does not have 4 examples"):
        mixed_sites(model, {"1": Site()}, lambda: model(x).square().sum(dim=2).flatten()[:4])
    with pytest.raises(ValueError, match=r"two or more examples, \(B,\), got \(\)"):
        mixed_sites(model, {"1": Site()}, lambda: model(x).sum())


def warned(model, mode, labels, sites=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with GradientRouter(model, sites or SITES, TABLE, mode) as router:
            for _ in range(2):
                with router(labels):
                    model(X)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("kind", ["batch norm", "batch norm, later", "layer norm", "batch norm, frozen"])
@pytest.mark.parametrize("mode", MODES)
def test_the_router_warns_once_of_batch_norm_after_a_site(mode, kind):
    model = {**MIXING, **APART}[kind]()
    found = warned(model, mode, LABELS)
    assert len(found) == (kind in MIXING)
    assert all(
        "mixes examples of different labels after the site '0'" in text and "GroupNorm" in text for text in found
    )
    assert not warned(model, mode, torch.zeros_like(LABELS)), "a batch of one label mixes nothing that is routed"


def test_the_router_says_nothing_of_batch_norm_before_a_site():
    model = APART["batch norm, before"]()
    assert not warned(model, "activation", LABELS, {"0": Site(module="1")})


def test_a_loss_of_one_label_reaches_the_site_through_the_other_one():
    """Why it matters: label "a" may not teach the site, and its loss alone does."""
    model = MIXING["batch norm, later"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with GradientRouter(model, SITES, TABLE) as router, router(LABELS):
            model(X)[LABELS == 0].square().sum().backward()
    assert model[0].weight.grad.abs().max() > 1e-3
    model.zero_grad()
    with GradientRouter(model, SITES, TABLE) as router:
        for label in (0, 1):
            with router(LABELS[label == LABELS]):
                loss = model(X[label == LABELS]).square().sum()
                if label == 0:
                    loss.backward()
    assert not model[0].weight.grad.any(), "with a forward pass for each label it does not"
