"""Where a model's parts are: its MLPs, experts and what follows its blocks; and what is said where they are not found.

tests/test_architectures.py has every family.
"""

import copy

import pytest
import torch

from routed_rl.lm import blocks, expand, mlp
from routed_rl.lm.structure import before_output, feed_forward, stream_width
from tests.lm.tiny_models import FAMILIES, HIDDEN, some_tokens, tiny_model

GATED = "model.layers.{}.mlp.gate_proj, model.layers.{}.mlp.up_proj:model.layers.{}.mlp.down_proj"
FUSED = "model.layers.{}.mlp.gate_up_proj:model.layers.{}.mlp.down_proj"
SHARED = "model.layers.{}.mlp.shared_expert."


@torch.no_grad()
def logits(model):
    return model(input_ids=some_tokens(), use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_what_follows_the_blocks_of_the_last_block(family):
    model = tiny_model(family).train()
    seen = []
    model.get_submodule(blocks(model)[-1]).register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model.config.final_logit_softcapping, model.config.logits_scaling = None, 1.0  # Gemma-2's and Granite's
    names = before_output(model)
    assert model.training and len(names) == 1
    expected = logits(model)
    found = seen[-1]
    assert found.shape == (2, 12, stream_width(model))
    with torch.no_grad():
        for module in (*map(model.get_submodule, names), model.get_output_embeddings()):
            found = module(found)
    torch.testing.assert_close(found, expected)


def test_a_model_without_a_last_norm():
    model = tiny_model("openai-gpt", n_embd=16, n_layer=2, n_head=2, n_positions=64)
    assert before_output(model) == []


def test_layers_of_each_kind():
    place = "model.layers.1."
    of_attention = tuple(f"{place}self_attn.{name}_proj" for name in "qkvo")
    assert feed_forward(tiny_model("opt"), 0).linear == ("model.decoder.layers.0.fc1", "model.decoder.layers.0.fc2")
    dense = feed_forward(tiny_model("phi3"), 1)
    assert dense.linear == (f"{place}mlp.gate_up_proj", f"{place}mlp.down_proj")
    assert dense.last == (dense.output,) == (f"{place}mlp.down_proj",)
    mixture = feed_forward(tiny_model("gpt_oss"), 1)
    assert (mixture.linear, mixture.last, mixture.output) == (of_attention, (f"{place}mlp.experts",), f"{place}mlp")


@pytest.mark.parametrize(("family", "projections"), [("qwen2", GATED), ("phi3", FUSED)])
def test_projections_that_are_named_are_those_that_are_found(family, projections):
    model = tiny_model(family)
    assert mlp(model, 1, projections) == mlp(model, 1)
    before = logits(model)
    expand(model, [0, 1], None, seed=0, projections=projections)
    assert mlp(model, 0).width(model) == 2 * HIDDEN
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)


def test_a_shared_expert_is_expanded_by_its_name():
    model = tiny_model("qwen2_moe", num_experts=4, num_experts_per_tok=2, shared_expert_intermediate_size=12)
    with pytest.raises(ValueError, match=r"is a mixture of experts, .* or name the projections of a shared expert"):
        mlp(model, 0)
    assert f"{SHARED.format(0)}down_proj" in feed_forward(model, 0).linear
    before = logits(model)
    expand(model, [0, 1], 4, 0, projections=f"{SHARED}gate_proj,{SHARED}up_proj:{SHARED}down_proj")
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "named"),
    [("bitnet", "model.layers.0.mlp.up_proj"), ("mamba", "backbone.layers.0.mixer.in_proj")],
)
def test_an_mlp_that_is_not_found_has_the_linear_layers_listed(family, named):
    """BitNet has a norm over the hidden units, so new units would change it. Mamba has no MLPs."""
    model = tiny_model(family)
    with pytest.raises(ValueError, match=rf"^no MLP was found in .*layers.0: pass projections, .* are .*{named}"):
        mlp(model, 0)


def test_two_mlps_in_a_block_are_not_chosen_between():
    model = tiny_model("llama")
    model.model.layers[1].other = copy.deepcopy(model.model.layers[1].mlp)
    with pytest.raises(ValueError, match=r"^more than one MLP was found in model\.layers\.1: pass projections"):
        mlp(model, 1)
    other = GATED.replace("mlp", "other")
    assert mlp(model, 1, other).consumer == "model.layers.1.other.down_proj"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("up", "projections must be like"),
        (f"{GATED},model.layers.{{}}.self_attn.o_proj", "projections must be like"),
        ("model.layers.0.mlp.up_proj:model.layers.0.mlp.down_proj", r"with \{\} for the layer"),
        ("model.layers.{}.mlp.up:model.layers.{}.mlp.down_proj", "no module 'model.layers.0.mlp.up'; the nearest are"),
        (
            "model.layers.{}.mlp.up_proj:model.layers.{}.mlp.down_proj",
            "but not 'model.layers.0.mlp.gate_proj' beside it, of the same size: a gated MLP needs both",
        ),
        (GATED.replace("mlp.down_proj", "self_attn.o_proj"), "the same width in all modules"),
        (GATED.replace("mlp.down_proj", "mlp"), "'model.layers.0.mlp' must be a Linear .*, got Qwen2MLP"),
    ],
)
def test_projections_that_do_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        mlp(tiny_model("qwen2"), 0, wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_is_not_there(layer):
    with pytest.raises(ValueError, match=f"layer must be within 0 … 1, got {layer}"):
        mlp(tiny_model("qwen2"), layer)
    with pytest.raises(ValueError, match=f"no module 'model.layers.{layer}.mlp.gate_proj'"):
        mlp(tiny_model("qwen2"), layer, GATED)
