"""Folders with pretrained models: adapters are merged into their base models; pickles are refused, and never read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from routed_rl.lm import load_model, load_tokenizer, save_model, save_tokenizer, stories_tokenizer
from routed_rl.lm.folders import ORIGIN, check_folder, outline
from routed_rl.lm.inputs import model_identity
from routed_rl.lm.own import saved_model
from tests.lm.pretrained_folders import name_base, save_adapter, save_pickled
from tests.lm.tiny_models import some_tokens, tiny_model


def logits(model):
    with torch.no_grad():
        return model(input_ids=some_tokens()).logits


@pytest.fixture
def base(tmp_path):
    save_model(tiny_model("llama"), stories_tokenizer(), tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"target_modules": ["q_proj", "up_proj"]}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["mlp"], "use_dora": True}),
    ],
)
def test_an_adapter_is_merged_into_its_base_model(tmp_path, kind, settings):
    """The result is a plain model, all of which is trained, and which can be saved and loaded again."""
    save_model(tiny_model(kind), stories_tokenizer(), tmp_path / "base")
    expected = save_adapter(tmp_path / "adapter", tmp_path / "base", kind, **settings)
    state = torch.get_rng_state()
    model = load_model(str(tmp_path / "adapter"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(logits(model.eval()), logits(expected), rtol=0, atol=1e-5)
    assert (logits(model) - logits(tiny_model(kind))).abs().max() > 1e-3
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in tiny_model(kind).named_parameters()]
    save_model(model, load_tokenizer(str(tmp_path / "adapter")), tmp_path / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(model))


def test_a_base_model_beside_the_adapter_and_an_adapter_of_an_adapter(base, tmp_path, monkeypatch):
    save_adapter(tmp_path / "first", "../base", target_modules=["q_proj"])
    save_adapter(tmp_path / "second", "first", target_modules=["v_proj"])
    monkeypatch.chdir(tmp_path)
    state = load_model("second").state_dict()
    changed = {
        name for name, tensor in tiny_model("llama").state_dict().items() if not torch.equal(tensor, state[name])
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    assert outline("second").num_parameters() == tiny_model("llama").num_parameters()


def test_the_tokenizer_is_the_adapters_or_else_its_bases(base, tmp_path):
    save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    assert load_tokenizer(str(tmp_path / "adapter")).get_vocab() == stories_tokenizer().get_vocab()
    longer = stories_tokenizer()
    longer.add_tokens(["brandnew"])
    longer.save_pretrained(tmp_path / "adapter")
    assert "brandnew" in load_tokenizer(str(tmp_path / "adapter")).get_vocab()


def test_an_adapters_identity_is_of_its_files_and_its_bases(base, tmp_path):
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, target_modules=["q_proj"])
    found = [model_identity(str(adapter))]
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")
    found.append(model_identity(str(adapter)))
    save_model(tiny_model("llama", seed=3), stories_tokenizer(), base)
    found.append(model_identity(str(adapter)))
    name_base(adapter, "nobody/nothing")
    found.append(model_identity(str(adapter)))
    assert len(set(found)) == 4 and found[-1] == model_identity(str(adapter))


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer.model", "vocab.txt", "merges.txt", "qwen.tiktoken", "tokenizer.json"]
)
def test_a_models_identity_is_of_all_files_that_are_loaded(base, name):
    before = model_identity(str(base))
    for others in ("README.md", "optimizer.pt", ".cache"):
        (base / others).write_text("not loaded")
    assert model_identity(str(base)) == before
    found = {before}
    for content in ("{}", "{ }"):
        (base / name).write_text(content)
        found.add(model_identity(str(base)))
    assert len(found) == 3


def test_a_model_with_an_adapter_in_it_is_not_saved_as_plain(base, tmp_path):
    save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")  # transformers adds it and does not merge it
    with pytest.raises(ValueError, match="is not a plain model of transformers: merge or delete its adapters first"):
        save_model(model, stories_tokenizer(), tmp_path / "saved")


def damage(base, folder, how):
    """Make a folder that cannot be loaded."""
    if how == "pickle":
        save_pickled(folder)
        return
    if how == "pickles, sharded":
        save_pickled(folder)
        (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
        return
    save_adapter(folder, base, target_modules=["q_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    weights = folder / "adapter_model.safetensors"
    if how == "pickled adapter":
        torch.save(load_file(weights), folder / "adapter_model.bin")
    if how in ("pickled adapter", "no weights"):
        weights.unlink()
    elif how == "no base":
        name_base(folder, "")
    elif how == "pickled base":
        save_pickled(folder / "of")
        name_base(folder, folder / "of")
    elif how == "prompts":
        (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PROMPT_TUNING"}))
    elif how == "unknown kind":
        (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "MAGIC"}))
    elif how == "a model too":
        shutil.copy(base / "config.json", folder)
        shutil.copy(base / "model.safetensors", folder)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("pickle", r"only 'pytorch_model.bin', a pickle, .* AutoModelForCausalLM.from_pretrained\(.*save_pretrained\("),
        ("pickles, sharded", "only 'pytorch_model-00001-of-00001.bin', a pickle"),
        ("pickled adapter", r"only 'adapter_model.bin', a pickle, .* by AutoPeftModelForCausalLM.from_pretrained\("),
        ("pickled base", "only 'pytorch_model.bin', a pickle"),
        ("no weights", "has adapter_config.json, but not the adapter's weights, adapter_model.safetensors"),
        ("no base", "names no base model: set base_model_name_or_path in adapter_config.json"),
        ("prompts", "is of the kind PROMPT_TUNING, which cannot be merged into a model's weights"),
        ("unknown kind", "has an unknown configuration: "),
        ("a model too", "holds a model and an adapter: move adapter_config.json"),
    ],
)
def test_what_cannot_be_loaded_is_said_without_reading_weights(base, tmp_path, how, message, monkeypatch):
    damage(base, tmp_path / "bad", how)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", None)
        for call in (check_folder, load_model):
            with pytest.raises(OSError, match=message) as error:
                call(str(tmp_path / "bad"))
            assert "\n" not in str(error.value)


def test_the_sentence_on_pickles_says_what_helps(tmp_path):
    save_pickled(tmp_path / "bad")
    with pytest.raises(OSError) as error:
        check_folder(str(tmp_path / "bad"))
    eval(str(error.value).partition("convert it by ")[2])
    check_folder(str(tmp_path / "bad"))
    assert torch.equal(logits(load_model(str(tmp_path / "bad"))), logits(tiny_model("llama")))


def test_an_adapter_that_does_not_fit_its_base_model(base, tmp_path):
    save_adapter(tmp_path / "other", base, "gpt_neo", target_modules=["out_proj"])
    with pytest.raises(OSError, match="does not fit its base model: Target modules"):
        load_model(str(tmp_path / "other"))
    save_adapter(tmp_path / "half", base, target_modules=["q_proj"])
    weights = load_file(tmp_path / "half" / "adapter_model.safetensors")
    weights.pop(min(weights))
    save_file(weights, tmp_path / "half" / "adapter_model.safetensors")
    with pytest.raises(OSError, match="does not fit its base model: Found missing adapter keys"):
        load_model(str(tmp_path / "half"))
    save_model(tiny_model("llama", hidden_size=32), stories_tokenizer(), base)
    save_adapter(tmp_path / "narrow", base, target_modules=["q_proj"])
    with pytest.raises(OSError, match=r"does not fit its base model: .*size mismatch") as error:
        load_model(str(tmp_path / "narrow"))
    assert "\n" not in str(error.value)


def test_an_outline_has_the_shapes_alone(base):
    model = outline(str(base))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert [p.shape for p in model.parameters()] == [p.shape for p in tiny_model("llama").parameters()]
    with pytest.raises(OSError, match="holds no model that transformers can load: "):
        outline(str(base.parent))


def test_saved_files_do_not_say_where_things_came_from(base, tmp_path):
    """However they were loaded, and for every way in which we save."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": str(base)}))
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "name_or_path": str(base), "unk_token": "/"}))
    ours, theirs = load_tokenizer(base), AutoTokenizer.from_pretrained(base, cache_dir=tmp_path / "cache", revision="a")
    theirs.init_kwargs["vocab_file"] = str(base / "vocab.json")
    for number, tokenizer in enumerate((ours, theirs)):
        save_model(load_model(base), tokenizer, tmp_path / f"model-{number}")
        save_tokenizer(tokenizer, tmp_path / f"tokenizer-{number}")
        saved_model(load_model(base), tokenizer, tmp_path / "own")
    folders = [*tmp_path.glob("model-*"), *tmp_path.glob("tokenizer-*"), *tmp_path.glob("own/*")]
    assert len(folders) == 5, "one of the user's own: all tokenizers are the same"
    for folder in folders:
        for file in folder.glob("*.json"):
            text = file.read_text()
            assert str(tmp_path) not in text, file
            assert not set(json.loads(text)) & ORIGIN, file
        assert AutoTokenizer.from_pretrained(folder).unk_token == "/"
