"""Models of every known family, as small as possible."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from routed_rl.lm.stories import stories_tokenizer

HIDDEN = 24
_COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": _COMMON,
    "gemma2": {**_COMMON, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global"], 2]],
        "intermediate_size": HIDDEN,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": HIDDEN, "n_positions": 64},
    "gpt_neox": {key: value for key, value in _COMMON.items() if key != "num_key_value_heads"},
    "starcoder2": {**_COMMON, "sliding_window": None},
}


def tiny_model(kind, seed=0, **options):
    """Return a new model for :func:`stories_tokenizer`, without dropout. ``options`` set other sizes."""
    tokenizer = stories_tokenizer()
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if kind == "gpt2" else {}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    options = {"vocab_size": len(tokenizer), **FAMILIES.get(kind, _COMMON), **dropout, **special, **options}
    config = AutoConfig.for_model(kind, **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # biases too, so that they are not 0
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def some_tokens(seed=0):
    return torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(seed))
