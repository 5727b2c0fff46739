"""Models of every family that is tested, as small as possible."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from routed_rl.lm.stories import stories_tokenizer

HIDDEN = 24
_PLAIN = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 64,
}
_COMMON = {**_PLAIN, "num_key_value_heads": 1}
_GEMMA = {**_COMMON, "head_dim": 8}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": HIDDEN, "n_positions": 64}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_OPT = {**_PLAIN, "ffn_dim": HIDDEN, "dropout": 0.0}
_EXPERTS = {"num_experts_per_tok": 2, "head_dim": 8}
DENSE = {
    "llama": _COMMON,  # SmolLM 2 too
    "mistral": {**_COMMON, "sliding_window": 8},
    "qwen2": _COMMON,
    "qwen3": _GEMMA,
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_GEMMA, "query_pre_attn_scalar": 8},
    "phi": {**_PLAIN, "resid_pdrop": 0.0},
    "phi3": {**_COMMON, "resid_pdrop": 0.0},
    "gpt2": {**_GPT2, **_NO_DROPOUT},
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global"], 2]],
        "intermediate_size": HIDDEN,
        "max_position_embeddings": 64,
    },
    "gpt_neox": _PLAIN,
    "gptj": {**_GPT2, **_NO_DROPOUT, "rotary_dim": 4},
    "opt": {**_OPT, "word_embed_proj_dim": 16},
    "opt-350m": {**_OPT, "word_embed_proj_dim": 12, "do_layer_norm_before": False},
    "falcon": {**_PLAIN, "ffn_hidden_size": HIDDEN},
    "falcon-40b": {**_COMMON, "ffn_hidden_size": HIDDEN, "new_decoder_architecture": True},
    "olmo": _COMMON,
    "olmo2": _COMMON,
    "granite": {**_COMMON, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "stablelm": _COMMON,
    "starcoder2": {**_COMMON, "sliding_window": None},
    "smollm3": _COMMON,
}
MIXTURES = {
    "mixtral": {**_COMMON, **_EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {**_COMMON, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": HIDDEN},
    "gpt_oss": {**_COMMON, **_EXPERTS, "num_local_experts": 4, "rope_parameters": {"rope_type": "default"}},
}
FAMILIES = {**DENSE, **MIXTURES}
"""The options of a tiny configuration for each family. After a hyphen: a member that is built in another way."""
ALONE = ("opt", "opt-350m", "falcon", "falcon-40b", "gpt_oss")
"""Families whose documents cannot share a row."""
WIDTH_NAMES = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
"""Names of the option that sets the number of hidden units."""


def tiny_model(kind, seed=0, **options):
    """Return a new model for :func:`stories_tokenizer`, without dropout. ``options`` set other sizes."""
    tokenizer = stories_tokenizer()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    options = {"vocab_size": len(tokenizer), **FAMILIES.get(kind, _COMMON), **special, **options}
    config = AutoConfig.for_model(kind.split("-")[0] if kind in FAMILIES else kind, **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # biases too, so that they are not 0
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def some_tokens(seed=0):
    return torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(seed))
