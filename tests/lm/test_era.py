"""Expand, Route, Ablate: the paper's weights, exact experts, penalties, and the gradient of each token."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch
from routed_rl.lm.era import (
    NEW,
    ORIGINAL,
    TABLE,
    EraObjective,
    ablate,
    era_weights,
    expand,
    expert_weights,
    token_weights,
)
from routed_rl.lm.losses import next_token_loss
from routed_rl.routing import GradientRouter, Site, remove_units
from routed_rl.routing.layers import linear_weight
from tests.lm.tiny_models import HIDDEN, some_tokens, tiny_model
from tests.routing.naive import entry_weights

PUBLISHED = {
    "bird": (73.1, 18.7, 0.585),
    "flew": (10.3, 3.6, 0.810),
    "bear": (10.9, 3.8, 0.816),
    "animals": (10.2, 3.9, 0.851),
    "Bob": (13.2, 5.9, 0.901),
    "walked": (9.7, 4.5, 0.909),
    "find": (19.9, 9.3, 0.912),
    "water": (5.2, 8.3, 0.993),
    "mom": (23.4, 38.2, 0.993),
    "fish": (1.5, 6.7, 1.000),
}
"""Gradient routing, table 3: how often of 10,000 tokens in stories to forget and in others, and the weight."""
UNITS = 6
LAYERS = [1]


def random_batch(rows=2, tokens=7, seed=0):
    """Return a batch in which some tokens are labelled, one of them the first, and some targets are not scored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.where(torch.rand(rows, tokens, generator=generator) < 0.5, FORGET_LABEL, NO_LABEL)
    labels[0, 0], labels[0, -1], labels[-1, -1] = FORGET_LABEL, FORGET_LABEL, NO_LABEL
    scored = torch.rand(rows, tokens - 1, generator=generator) < 0.8
    return Batch(torch.randint(0, 96, (rows, tokens), generator=generator), labels, scored)


def random_model(kind="gpt_neo", layers=LAYERS, units=UNITS):
    """Return a model in double precision, with new units that have learned something, and its expansion."""
    model = tiny_model(kind).double()
    expansion = expand(model, layers, units, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer, hidden in expansion.hidden.items():
            for name in (*hidden.producers, hidden.consumer):
                weight = linear_weight(model.get_submodule(name))  # rows are outputs, in every kind of layer
                part = weight[:, expansion.units[layer]] if name == hidden.consumer else weight[expansion.units[layer]]
                part.copy_(0.3 * torch.randn(part.shape, generator=generator, dtype=torch.float64))
    return model, expansion


@torch.no_grad()
def logits(model, tokens):
    return model(input_ids=tokens, use_cache=False).logits


# --- weights ------------------------------------------------------------------------------------


def test_token_weights_are_the_published_ones():
    scale = 1e6  # so large that the pseudo-counts do not matter
    forget, retain = (
        np.array([*column, 10_000 - sum(column)]) * scale for column in list(zip(*PUBLISHED.values(), strict=True))[:2]
    )
    found = token_weights(forget, retain)
    for weight, (word, (*_, published)) in zip(found, PUBLISHED.items(), strict=False):
        assert weight == pytest.approx(published, abs=0.01), word


def test_token_weights_of_words_that_are_nowhere_or_only_in_one_place():
    some, zero = np.array([5000.0, 300.0, 0.0]), np.array([5000.0, 0.0, 300.0])
    weight = token_weights(some, zero)
    assert weight[0] > 0.95 and weight[1] < 0.05 and weight[2] > 0.95 and weight.min() >= 0 and weight.max() <= 1
    assert np.isfinite(token_weights(np.zeros(4), np.zeros(4))).all()
    extreme = token_weights(np.array([1e12, 0.0]), np.array([0.0, 1e12]))
    assert extreme.tolist() == pytest.approx([0, 1], abs=1e-9)
    # The pseudo-counts are 1 and 20. The ratios of two tokens are computed by hand.
    ratio = (3 / 12) / (27 / 67)
    by_hand = 1 - 1 / (1 + np.exp(-(ratio - 1 / ratio - 4)))
    assert token_weights(np.array([2, 8]), np.array([7, 20]))[0] == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("alpha", [-0.75, 0.0, 1.0])
def test_era_weights_are_those_of_a_loop(alpha):
    batch = random_batch(3, 9)
    token_weight = torch.rand(96, generator=torch.Generator().manual_seed(2))
    found = era_weights(token_weight, alpha)(batch)
    assert set(found) == {NEW, ORIGINAL} == set(TABLE.modules)
    assert (found[NEW] == 1).all() and found[NEW].shape == batch.tokens.shape
    for row in range(3):
        for t in range(9):
            expected = 1.0  # the last position has no target
            if t < 8 and batch.labels[row, t + 1] == FORGET_LABEL:
                w = float(token_weight[batch.tokens[row, t + 1]])
                expected = w * 1 + (1 - w) * alpha
            assert float(found[ORIGINAL][row, t]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt_neo", "gpt2", "llama"])
def test_each_expert_computes_alone(kind):
    """In DEMix only the new units compute for labelled rows, and only the original units for all others."""
    model, expansion = random_model(kind, [0, 1], None)
    assert all(units == slice(HIDDEN, 2 * HIDDEN) for units in expansion.units.values())
    tokens = some_tokens()
    labels = torch.full_like(tokens, NO_LABEL)
    labels[0] = FORGET_LABEL
    batch = Batch(tokens, labels, torch.ones(2, 11, dtype=torch.bool))
    router = GradientRouter(model, expansion.sites("forward"), TABLE, "forward")
    with router, router(weights=expert_weights(batch)):
        together = logits(model, tokens)
    only_new, only_original = copy.deepcopy(model), copy.deepcopy(model)
    for hidden in expansion.hidden.values():
        remove_units(only_new, hidden, slice(0, HIDDEN))
    ablate(only_original, expansion)
    torch.testing.assert_close(together[0], logits(only_new, tokens)[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together[1], logits(only_original, tokens)[1], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(logits(only_new, tokens), logits(only_original, tokens), atol=1e-2)


# --- expansion ----------------------------------------------------------------------------------


def test_cut_out_again_the_model_is_the_old_one_whatever_the_new_units_learned():
    """After ablation the model is the original one. (test_models.py tests the function of an expanded model, and
    saving.)
    """
    model = tiny_model("gpt_neo")
    state, config = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.config.to_dict()
    expansion = expand(model, [0, 1], UNITS, seed=0)
    assert dict(expansion.units) == {0: slice(HIDDEN, HIDDEN + UNITS), 1: slice(HIDDEN, HIDDEN + UNITS)}
    assert model.config.to_dict() == config
    with torch.no_grad():
        for layer, hidden in expansion.hidden.items():
            out = model.get_submodule(hidden.consumer).weight[:, expansion.units[layer]]
            out.copy_(torch.randn(out.shape, generator=torch.Generator().manual_seed(layer)))
    assert not torch.allclose(logits(model, some_tokens()), logits(tiny_model("gpt_neo"), some_tokens()), atol=1e-2)
    ablate(model, expansion)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, some_tokens()), logits(tiny_model("gpt_neo"), some_tokens()))


def test_new_units_are_a_function_of_the_seed():
    models = [tiny_model("llama") for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        expand(model, [0], UNITS, seed)
    first, again, other = (model.get_submodule("model.layers.0.mlp.up_proj").weight[HIDDEN:] for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other) and first.abs().min() > 0


@pytest.mark.parametrize("layers", [[2], [-1], [0, 7], [], [1, 1]])
def test_layers_that_the_model_does_not_have(layers):
    model = tiny_model("gpt_neo")
    with pytest.raises(ValueError, match=r"layers must be some of 0 … 1, each once, got \[") as error:
        expand(model, layers, UNITS, seed=0)
    assert "\n" not in str(error.value) and str(layers) in str(error.value)
    assert model.get_submodule("transformer.h.0.mlp.c_fc").out_features == HIDDEN, "nothing was added"


def test_a_model_whose_projections_are_not_known():
    with pytest.raises(ValueError, match=r"no MLP was found in model\.layers\.0: pass projections") as error:
        expand(tiny_model("bitnet"), [0], UNITS, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "units"), [("gpt_neo", 0), ("gpt_neo", -3)])
def test_no_units(kind, units):
    with pytest.raises(ValueError, match=f"at least one unit must be added, got {units}"):
        expand(tiny_model(kind), [0], units, seed=0)


# --- the objective ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt_neo", "llama"])
@pytest.mark.parametrize("l1", [0.0, 0.3])
def test_the_penalty_is_that_of_a_loop(kind, l1):
    model, expansion = random_model(kind, [0, 1])
    batch = random_batch()
    hidden = []
    handles = [
        model.get_submodule(place.consumer).register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
        for place in expansion.hidden.values()
    ]
    expected = next_token_loss(model, batch).detach().double()
    for handle in handles:
        handle.remove()
    assert [tuple(activations.shape) for activations in hidden] == 2 * [(2, 7, HIDDEN + UNITS)]
    for activations in hidden:
        for value in activations.detach().flatten():
            expected += l1 * value.abs()
    found = EraObjective(expansion=expansion, l1=l1)(model, batch)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=0)
    assert not any(module._forward_pre_hooks for module in model.modules()), "nothing stays in the model"


def test_without_anything_it_is_the_loss_of_next_tokens():
    model, batch = tiny_model("gpt_neo"), random_batch()
    assert torch.equal(EraObjective()(model, batch), next_token_loss(model, batch))


def gradients(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    zeros = (torch.zeros_like(parameter) for parameter in model.parameters())
    pairs = zip(dict(model.named_parameters()), found, zeros, strict=True)
    return {name: zero if gradient is None else gradient for name, gradient, zero in pairs}


def naive_activation(model, expansion, batch, original, silence, l1):
    """Write the paper's ``m a + (1 - m) stop(a)`` into the model. Penalties are on the activations before it."""
    penalty, handles = [], []
    for layer, hidden in expansion.hidden.items():

        def route(module, args, units=expansion.units[layer]):
            a = args[0]
            penalty.append(a.abs().sum())
            m = torch.ones_like(a)
            for row in range(len(batch)):
                for t in range(batch.tokens.shape[1]):
                    m[row, t, : units.start] = original[row][t]
            if silence:
                a = a * (m != 0)
            return (m * a + (1 - m) * a.detach(),)

        handles.append(model.get_submodule(hidden.consumer).register_forward_pre_hook(route))
    loss = next_token_loss(model, batch)
    for handle in handles:
        handle.remove()
    return gradients(loss + l1 * sum(penalty), model)


def places_by_hand(expansion):
    """Return the sites of the units' parameters: rows of the layers into them, columns of the layer out of them."""
    found = {}
    for hidden in expansion.hidden.values():
        for column, units in ((NEW, slice(HIDDEN, HIDDEN + UNITS)), (ORIGINAL, slice(0, HIDDEN))):
            found[f"{hidden.consumer} {column}"] = Site("input", units, module=hidden.consumer, column=column)
            for name in hidden.producers:
                found[f"{name} {column}"] = Site("output", units, module=name, column=column)
    return found


def naive_parameter(model, sites, batch, original, l1, expansion):
    """Return the layers' gradients: those of each single position, times the position's weight, summed."""
    plain = gradients(EraObjective(expansion=expansion, l1=l1)(model, batch), model)
    places = {}
    for name, site in sites.items():
        places.setdefault(site.module_name(name), []).append(site)
    total = {
        name: torch.zeros_like(gradient) if name.rpartition(".")[0] in places else gradient
        for name, gradient in plain.items()
    }
    for row in range(len(batch)):
        for t in range(batch.tokens.shape[1]):
            here = torch.zeros(*batch.tokens.shape, 1, dtype=torch.bool)
            here[row, t] = True
            undo = []
            for module_name in places:
                module = model.get_submodule(module_name)

                def forward(x, module=module, here=here):
                    weight, bias = linear_weight(module), module.bias
                    elsewhere = F.linear(x, weight.detach(), None if bias is None else bias.detach())
                    return torch.where(here, F.linear(x, weight, bias), elsewhere)

                undo.append(module)
                module.forward = forward
            single = gradients(EraObjective(expansion=expansion, l1=l1)(model, batch), model)
            for module in undo:
                del module.forward
            for name, gradient in single.items():
                module_name, _, leaf = name.rpartition(".")
                for site in places.get(module_name, []):
                    weight = original[row][t] if site.column == ORIGINAL else 1.0
                    gradient = gradient * entry_weights(model.get_submodule(module_name), leaf, site, weight)
                if module_name in places:
                    total[name] = total[name] + gradient
    return total


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("gpt_neo", "activation"),
        ("llama", "activation"),
        ("gpt_neo", "forward"),
        ("gpt_neo", "parameter"),
        ("gpt2", "parameter"),
        ("llama", "parameter"),
    ],
)
def test_gradients_are_those_of_single_tokens(kind, mode):
    model, expansion = random_model(kind)
    batch = random_batch()
    token_weight = torch.rand(96, generator=torch.Generator().manual_seed(3))
    alpha = -0.75
    if mode == "forward":  # only a weight of 0 is silent
        alpha, token_weight = 0.0, token_weight.where(token_weight > 0.5, 0.0)
    weights = era_weights(token_weight, alpha)
    original = weights(batch)[ORIGINAL].double().tolist()
    assert len({weight for row in original for weight in row}) > 3
    router = GradientRouter(model, expansion.sites(mode), TABLE, mode)
    with router:
        found = gradients(EraObjective(router, weights, expansion, l1=0.01)(model, batch), model)
    if mode == "parameter":
        expected = naive_parameter(model, places_by_hand(expansion), batch, original, 0.01, expansion)
    else:
        expected = naive_activation(model, expansion, batch, original, mode == "forward", 0.01)
    plain = gradients(EraObjective(expansion=expansion, l1=0.01)(model, batch), model)
    assert set(found) == set(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert any(not torch.allclose(found[name], plain[name], atol=1e-4) for name in found), "routing does something"
