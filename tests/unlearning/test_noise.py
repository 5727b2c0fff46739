"""Shrink and perturb: its formula, what it does not change, and the noise that it draws."""

import copy
import math

import pytest
import torch
from torch import nn

from routed_rl.unlearning import matrices, most_changed, shrink_and_perturb
from tests.lm.tiny_models import FAMILIES, tiny_model


def noised(model, *args, **options):
    model = copy.deepcopy(model)
    shrink_and_perturb(model, *args, **options)
    return model


def bits(model):
    """Return the bytes of every parameter, by name."""
    return {name: parameter.detach().numpy().tobytes() for name, parameter in model.named_parameters()}


def with_zeros(model):
    """Return a model with some weights 0 and -0, which differ in one bit."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[:2] = torch.tensor([0.0, -0.0])
    return model


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("initialisation", ["xavier", "model"])
def test_alpha_0_leaves_every_bit_and_alpha_1_nothing(kind, initialisation):
    model, other = with_zeros(tiny_model(kind)), tiny_model(kind, seed=1)
    assert bits(noised(model, 0.0, 0.1, 0, initialisation)) == bits(model)
    assert bits(noised(model, 1.0, 0.1, 0, initialisation)) == bits(noised(other, 1.0, 0.1, 0, initialisation))
    assert bits(noised(model, 0.9, 0.1, 0, initialisation)) != bits(noised(other, 0.9, 0.1, 0, initialisation))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_formula(kind):
    model = tiny_model(kind)
    alpha, beta = 0.3, 0.5
    result, noise = noised(model, alpha, beta, 7), noised(model, 1.0, 1.0, 7)
    for name, parameter in model.named_parameters():
        of_noise = noise.get_parameter(name)
        expected = (1 - alpha) * parameter + alpha * beta * of_noise
        torch.testing.assert_close(result.get_parameter(name), expected)
        if parameter.dim() == 1:
            assert (of_noise == 0).all(), "a vector is only shrunk"
        else:
            bound = math.sqrt(6 / sum(parameter.shape[-2:]))  # of each expert's matrix
            assert of_noise.abs().max() <= bound
            assert of_noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
            assert of_noise.mean().abs() < 5 * bound / math.sqrt(3 * of_noise.numel())


def test_beta_0_shrinks_only():
    model = tiny_model("gpt_neo")
    for name, parameter in noised(model, 0.6, 0.0, 0).named_parameters():
        torch.testing.assert_close(parameter, 0.4 * model.get_parameter(name))


def test_frozen_parameters_are_noised_too_and_modes_stay():
    model = tiny_model("llama").requires_grad_(False)
    result = noised(model, 0.5, 0.1, 0)
    assert all(before != after for before, after in zip(bits(model).values(), bits(result).values(), strict=True))
    assert not any(parameter.requires_grad for parameter in result.parameters())


def test_a_tied_matrix_is_noised_once():
    model = tiny_model("gemma2")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    result = noised(model, 0.5, 0.0, 0)
    assert result.lm_head.weight is result.model.embed_tokens.weight
    torch.testing.assert_close(result.lm_head.weight, 0.5 * model.lm_head.weight)


def test_gains_and_biases_may_be_left_alone():
    model = tiny_model("gpt_neo")
    before, after = bits(model), bits(noised(model, 1.0, 0.1, 0, touch=matrices))
    all_after = bits(noised(model, 1.0, 0.1, 0))
    for name, parameter in model.named_parameters():
        # The noise of the others does not depend on it.
        assert after[name] == (before[name] if parameter.dim() == 1 else all_after[name])


def test_any_parameters_may_be_left_alone():
    model = tiny_model("llama")
    result = noised(model, 0.5, 0.1, 0, touch=lambda name, parameter: ".mlp." in name)
    before, after = bits(model), bits(result)
    assert {name for name in before if before[name] != after[name]} == {name for name in before if ".mlp." in name}


def test_what_is_drawn_is_a_function_of_the_seed():
    model = tiny_model("gpt_neo")
    for initialisation in ("xavier", "model"):
        drawn = []
        for seed, others in ((0, 1), (0, 2), (1, 1)):
            torch.manual_seed(others)
            state = torch.get_rng_state()
            drawn.append(bits(noised(model, 0.5, 0.1, seed, initialisation)))
            assert torch.equal(torch.get_rng_state(), state), "nobody else's numbers are drawn from"
        assert drawn[0] == drawn[1] != drawn[2]
    one, two = (noised(model, 1.0, 1.0, 0).transformer.h[i].mlp.c_fc.weight for i in (0, 1))
    assert not torch.equal(one, two), "each matrix has its own"


def test_a_new_model_is_one():
    """In a new model with LayerNorms, gains are 1, biases are 0, and matrices have the configuration's standard
    deviation.
    """
    model = tiny_model("gpt2", n_embd=32)
    new = noised(model, 1.0, 1.0, 0, "model")
    assert (new.transformer.ln_f.weight == 1).all() and (new.transformer.ln_f.bias == 0).all()
    assert new.transformer.wte.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.1)
    half = noised(model, 0.5, 0.2, 0, "model")
    for name, parameter in model.named_parameters():
        expected = 0.5 * parameter + 0.1 * new.get_parameter(name)
        torch.testing.assert_close(half.get_parameter(name), expected)


def test_a_mask_touches_nothing_else():
    model = with_zeros(tiny_model("gpt_neo"))
    name = "transformer.h.0.mlp.c_fc.weight"
    parameter = model.get_parameter(name)
    mask = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    everywhere, result = noised(model, 0.7, 0.1, 0), noised(model, 0.7, 0.1, 0, mask={name: mask})
    before, after = bits(model), bits(result)
    assert [key for key in before if before[key] != after[key]] == [name]
    changed = result.get_parameter(name)
    assert changed[~mask].detach().numpy().tobytes() == parameter[~mask].detach().numpy().tobytes()
    torch.testing.assert_close(changed[mask], everywhere.get_parameter(name)[mask])
    # A number between 0 and 1 is a share of alpha.
    soft = noised(model, 0.7, 0.1, 0, mask={name: torch.full_like(parameter, 0.5)})
    torch.testing.assert_close(soft.get_parameter(name), noised(model, 0.35, 0.1, 0).get_parameter(name))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_mask_of_what_changed_most(share):
    before = tiny_model("llama")
    after = copy.deepcopy(before)
    weight = after.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.view(-1)[:6] += torch.tensor([3.0, -5.0, 1.0, -1.5, 4.0, 0.5])
    masks = most_changed(before, after, share)
    assert set(masks) == {name for name, _ in before.named_parameters()}
    chosen = masks.pop("model.layers.1.mlp.up_proj.weight")
    assert not any(mask.any() for mask in masks.values()), "what has not changed is not noised"
    assert chosen.sum() == min(6, round(share * weight.numel())) and chosen.shape == weight.shape
    result = noised(after, 1.0, 0.1, 0, mask=masks | {"model.layers.1.mlp.up_proj.weight": chosen})
    assert (result.model.layers[1].mlp.up_proj.weight != weight).sum() == chosen.sum()


def test_the_largest_changes_come_first():
    before, after = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    after.weight.data = before.weight.data + torch.tensor([[0.1, -0.3, 0.2]])
    assert most_changed(before, after, 0.4)["weight"].tolist() == [[False, True, False]]
    assert most_changed(before, after, 0.6)["weight"].tolist() == [[False, True, True]]


@pytest.mark.parametrize(
    ("numbers", "options", "message"),
    [
        ((1.5, 0.1), {}, "alpha must be within 0 … 1, got 1.5"),
        ((-0.1, 0.1), {}, "alpha must be within 0 … 1, got -0.1"),
        ((math.nan, 0.1), {}, "alpha must be within 0 … 1, got nan"),
        ((0.5, -1.0), {}, "beta must be 0 or more, got -1.0"),
        ((0.5, math.inf), {}, "beta must be 0 or more, got inf"),
        ((0.5, 0.1), {"mask": {"weights": torch.ones(1)}}, "the mask is for 'weights', which is not a parameter"),
        ((0.5, 0.1), {"mask": {"lm_head.weight": torch.ones(1)}}, "or is the second name of one"),
        (
            (0.5, 0.1),
            {"mask": {"transformer.wpe.weight": torch.ones(2, 2)}},
            r"has the shape \(2, 2\), the parameter \(64, 16\)",
        ),
        (
            (0.5, 0.1),
            {"mask": {"transformer.wpe.weight": torch.full((64, 16), 2.0)}},
            "must be within 0 … 1, those for 'transformer.wpe.weight' are within 2.0 … 2.0",
        ),
    ],
)
def test_bad_input_changes_nothing(numbers, options, message):
    model = tiny_model("gpt_neo")
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        shrink_and_perturb(model, *numbers, 0, **options)
    assert bits(model) == before


def test_models_that_cannot_be_noised_so():
    with pytest.raises(ValueError, match=r"'0.weight' of shape \(4, 3, 2, 2\) is neither a matrix nor a vector"):
        shrink_and_perturb(nn.Sequential(nn.Conv2d(3, 4, 2)), 0.5, 0.1, 0)
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj = nn.Linear(16, 25, bias=False)
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp.up_proj.weight' of shape \(25, 16\) does not match"):
        shrink_and_perturb(model, 0.5, 0.1, 0, "model")
    with pytest.raises(ValueError, match="share must be within 0 … 1, got 2"):
        most_changed(model, model, 2)
    with pytest.raises(ValueError, match="the models must have the same parameters"):
        most_changed(model, tiny_model("llama"), 0.5)
