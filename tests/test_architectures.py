"""Conformance: what is promised of any causal language model holds for every family, from tiny random models."""

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from routed_rl.lm import (
    ablate,
    add_adapters,
    delete_forget,
    expand,
    load_model,
    mlp,
    route,
    save_model,
    text_corpus,
)
from routed_rl.lm.batches import FORGET_LABEL, Batch
from routed_rl.lm.era import TABLE, EraObjective, era_weights
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from routed_rl.lm.structure import blocks, feed_forward
from routed_rl.routing import GradientRouter
from routed_rl.routing import ablate as silence
from routed_rl.routing.layers import linear_weight
from routed_rl.unlearning import SUPPRESSORS, attack, quantised, undo, unlearn
from tests.lm.tiny_models import DENSE, FAMILIES, HIDDEN, MIXTURES, WIDTH_NAMES, some_tokens, tiny_model
from tests.unlearning.questions import PAIRED, for_method

TOKENIZER = stories_tokenizer()
TEXTS = [" ".join(story.text.split()[:12]) for story in generate_stories(12, 0)]
FORGET, RETAIN = TEXTS[:6], TEXTS[6:]
CORPUS = text_corpus(TOKENIZER, FORGET, RETAIN)
SMALL = {"batch_size": 4, "length": 16, "progress": False}
DEPTH = {"rmu": {"depth": 2}}  # the models have two blocks
MODES = ("activation", "parameter", "forward")
made = cache(tiny_model)
"""The model of a family, for calls that work on a copy."""


@torch.no_grad()
def logits(model):
    return model(input_ids=some_tokens(), use_cache=False).logits


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    """Return the names of the parameters that differ from those before."""
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("width", [HIDDEN, 16])
@pytest.mark.parametrize("family", DENSE)
def test_expanded_it_computes_the_same_and_ablated_it_is_the_same(family, width):
    """With 16 hidden units, the residual width, sizes do not tell the layers into the units and out of them apart."""
    model = tiny_model(family, **{name: width for name in WIDTH_NAMES if name in DENSE[family]})
    before, was = logits(model), state(model)
    assert [mlp(model, layer).width(model) for layer in (0, 1)] == [width, width]
    expansion = expand(model, [1], 8, seed=0)
    assert [mlp(model, layer).width(model) for layer in (0, 1)] == [width, width + 8]
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="does not match the model's configuration: remove its new units first"):
        save_model(model, TOKENIZER, "nowhere")

    hidden, new = expansion.hidden[1], expansion.units[1]
    drawn = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear_weight(model.get_submodule(hidden.consumer))[:, new] = drawn
    assert not torch.allclose(logits(model), before, atol=1e-2), "what the new units compute is used"
    with_silent_units = silence(model, hidden, new)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    with_silent_units.remove()
    ablate(model, expansion)
    assert state(model).keys() == was.keys() and not changed(model, was)
    assert torch.equal(logits(model), before)


def labelled_loss(added, mode, model=None):
    """Return the loss of a batch of labelled tokens that the original units, or the adapter "keep", may not learn."""
    tokens, model = some_tokens(), added.model if model is None else model
    batch = Batch(tokens, torch.full_like(tokens, FORGET_LABEL), torch.ones(2, 11, dtype=torch.bool))
    with GradientRouter(model, added.sites(mode), TABLE, mode) as router:
        return EraObjective(router, era_weights(torch.zeros(96), 0.0))(model, batch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", DENSE)
def test_original_units_learn_nothing_from_labelled_tokens_of_weight_0(family, mode):
    model = tiny_model(family)
    expansion = expand(model, [0, 1], 8, seed=0)
    for hidden in expansion.hidden.values():  # outgoing weights start at 0
        torch.nn.init.ones_(linear_weight(model.get_submodule(hidden.consumer))[:8, expansion.units[0]])
    labelled_loss(expansion, mode, model).backward()
    for layer, hidden in expansion.hidden.items():
        new = expansion.units[layer]
        original = slice(0, new.start)
        for gradient in (gradient_of(model.get_submodule(name)) for name in hidden.producers):
            assert gradient[hidden.outputs(new, new.stop)].any()
            assert not gradient[hidden.outputs(original, new.stop)].any()
        gradient = gradient_of(model.get_submodule(hidden.consumer))
        assert gradient[:, new].any() and gradient[:, original].any() == (mode == "activation")


def gradient_of(module):
    """Return the gradient of a linear layer's weight, ``(out, in)``."""
    return module.weight.grad if isinstance(module, torch.nn.Linear) else module.weight.grad.T


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", DENSE)
def test_routed_it_learns_and_has_its_old_shapes_after_ablation(family, mode):
    model = tiny_model(family)
    was = state(model)
    expansion = expand(model, [0, 1], 8, seed=0)
    route(model, expansion, TOKENIZER, FORGET, RETAIN, mode=mode, steps=2, **SMALL)
    ablate(model, expansion)
    assert {name: p.shape for name, p in state(model).items()} == {name: p.shape for name, p in was.items()}
    assert changed(model, was) and logits(model).isfinite().all()


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_is_not_expanded(family):
    model = tiny_model(family)
    was = state(model)
    with pytest.raises(ValueError, match=r"^model.layers.0 is a mixture of experts, .*: use adapters, or .*$"):
        expand(model, [0], 8, seed=0)
    assert not changed(model, was)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_routed_and_the_forget_adapter_is_deleted(family):
    adapters = add_adapters(tiny_model(family), 2, seed=0)
    assert torch.equal(logits(adapters.model), logits(made(family)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapters.model.named_parameters():
        if "lora_B" in name:  # which starts at 0
            torch.nn.init.normal_(parameter, generator=generator)
    labelled_loss(adapters, "parameter").backward()
    for name, parameter in adapters.model.named_parameters():
        assert parameter.grad is None or parameter.grad.any() == (".forget." in name), name
    plain = delete_forget(adapters)
    assert type(plain) is type(made(family)) and plain.state_dict().keys() == made(family).state_dict().keys()
    assert changed(plain, state(made(family))), "what the other adapter has learned stays"


@pytest.mark.parametrize("method", SUPPRESSORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_suppresses(family, method):
    model = made(family)
    was = state(model)
    sets, options = for_method(method, FORGET, RETAIN) if method in PAIRED else ([CORPUS], {})
    options |= {"allow_overlap": True, **SMALL, **DEPTH.get(method, {})}
    found = unlearn(model, TOKENIZER, *sets, method=method, steps=2, **options)
    assert not changed(model, was) and logits(found).isfinite().all()
    learned = changed(found, was)
    if method == "rmu":  # the last projections, or the weights of the experts
        ends = {mlp(model, layer).consumer for layer in (0, 1)} if family in DENSE else {".mlp.experts."}
        assert learned and all(any(end in name for end in ends) for name in learned)
    elif method == "repselect":  # all projections of the MLPs, or the weights of the experts
        mlps = {name for layer in (0, 1) for name in feed_forward(model, layer).linear}
        ends = mlps if family in DENSE else {".mlp.experts."}
        assert len(learned) >= 4 and all(any(end in name for end in ends) for name in learned)
    elif method == "circuit-breaker":  # the blocks, whose last stream is compared
        of_blocks = {name for name in was if name.startswith(tuple(f"{block}." for block in blocks(model)))}
        assert learned <= of_blocks and len(learned) > 0.8 * len(of_blocks)
    else:
        assert len(learned) > 0.8 * len(was)


@pytest.mark.parametrize("family", FAMILIES)
def test_noised_and_distilled(family):
    model = made(family)
    start, student = (undo(model, TOKENIZER, CORPUS, steps=steps, within=None, **SMALL) for steps in (0, 2))
    assert changed(start, state(model)) == {name for name, p in model.named_parameters() if p.dim() > 1}
    assert changed(student, state(start)) and logits(student).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_attacked(family):
    found = attack(made(family), TOKENIZER, CORPUS, steps=2, learning_rates=(1e-2,), measured=(0, 2), **SMALL)
    assert found.step.tolist() == [0, 2] and found.forget_loss[1] < found.forget_loss[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised(family):
    rounded = quantised(made(family), 3)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:
            rows = (parameter / parameter.abs().amax(dim=-1, keepdim=True) * 3).flatten(0, -2)
            torch.testing.assert_close(rows, rows.round(), rtol=0, atol=1e-4)
    assert logits(rounded).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_reloaded_in_plain_transformers_and_generating(family, tmp_path):
    model = made(family)
    save_model(model, TOKENIZER, tmp_path / "model")
    assert not changed(load_model(str(tmp_path / "model")), state(model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(plain) is type(model) and not changed(plain, state(model))
    assert torch.equal(logits(plain), logits(model))
    prompt = some_tokens()[:1, :3]
    written = plain.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False)
    assert torch.equal(written[:, :3], prompt) and written.shape[1] > 3
