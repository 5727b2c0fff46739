"""Folders with adapters and with pickles, for tests."""

import json
from copy import deepcopy

import torch
from peft import LoraConfig, get_peft_model

from routed_rl.lm import save_model, stories_tokenizer
from tests.lm.tiny_models import tiny_model


def save_adapter(folder, base, kind="llama", seed=1, **settings):
    """Save an adapter of the model in the folder ``base``, and return the model that merging it gives."""
    model = tiny_model(kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    name_base(folder, base)
    return deepcopy(adapted).merge_and_unload()


def name_base(folder, base):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))


def save_pickled(folder, kind="llama"):
    """Save a model as older versions of transformers did, with its tokenizer."""
    model = tiny_model(kind)
    save_model(model, stories_tokenizer(), folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
