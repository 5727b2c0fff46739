"""Folders with pretrained models: what is checked before they are read, and adapters that belong to another model."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import cached_file, find_adapter_config_file

from routed_rl.runs.files import read_json

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of an adapter of PEFT."""
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer_config.json", "*.safetensors"
ORIGIN = {
    *("_commit_hash", "_name_or_path", "cache_dir", "force_download", "is_local", "local_files_only", "name_or_path"),
    *("proxies", "resume_download", "revision", "subfolder", "token", "trust_remote_code", "use_auth_token"),
}
"""Settings that say how something was loaded."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
"""Weights that are pickles, which can run code. They are never read."""


def check_folder(name: str) -> None:
    """Raise OSError, in one line, if a folder's model or adapter cannot be loaded. The weights are not read.

    A name that is not a folder is not checked.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    if not (folder / ADAPTER).is_file():
        if not any(folder.glob(WEIGHTS)):
            _refuse_pickles(name, PICKLES, "AutoModelForCausalLM")
        return
    base = adapter_base(name)
    assert base is not None
    if not (folder / ADAPTER_WEIGHTS).is_file():
        _refuse_pickles(name, ("adapter_model.bin",), "AutoPeftModelForCausalLM")
        raise OSError(f"the folder {name!r} has {ADAPTER}, but not the adapter's weights, {ADAPTER_WEIGHTS}")
    config = _adapter_config(name)
    if config.is_prompt_learning or config.is_adaption_prompt:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise OSError(f"the adapter in {name!r} is of the kind {kind}, which cannot be merged into a model's weights")
    check_folder(base)


def _refuse_pickles(name: str, patterns: Iterable[str], loader: str) -> None:
    found = sorted(file.name for pattern in patterns for file in Path(name).glob(pattern))
    if found:
        raise OSError(
            f"the folder {name!r} has no weights in safetensors, only {found[0]!r}, a pickle, which could run code: if "
            f"you trust it, convert it by {loader}.from_pretrained({name!r}).save_pretrained({name!r})"
        )


def adapter_base(name: str) -> str | None:
    """Return the model that an adapter belongs to: a folder or a name on the hub. None: ``name`` is no adapter.

    A relative folder is sought in the working directory, then beside the adapter's files.

    Raises:
        OSError: if the adapter does not say what it belongs to.
    """
    try:
        path = find_adapter_config_file(name)
    except (OSError, ValueError):  # what is wrong with the name is said where the model is loaded
        return None
    if path is None:
        return None
    folder = Path(name)
    if (folder / CONFIG).is_file() and any(file.name != ADAPTER_WEIGHTS for file in folder.glob(WEIGHTS)):
        raise OSError(
            f"the folder {name!r} holds a model and an adapter: move {ADAPTER} and {ADAPTER_WEIGHTS} to a folder of "
            "their own, or delete them if the adapter is merged already"
        )
    try:
        base = read_json(path)["base_model_name_or_path"]
    except (ValueError, LookupError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise OSError(f"the adapter in {name!r} names no base model: set base_model_name_or_path in {ADAPTER}")
    beside = folder / base
    return str(beside) if folder.is_dir() and not Path(base).is_dir() and beside.is_dir() else base


def has_tokenizer(name: str) -> bool:
    """Return whether there is a tokenizer in a folder or on the hub under this name."""
    return _find(name, TOKENIZER) is not None


def _find(name: str, file: str) -> str | None:
    """Return the path of a file in a folder or on the hub; None if it is not there."""
    if Path(name).is_dir():
        return str(Path(name, file)) if Path(name, file).is_file() else None
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False)  # type: ignore[no-any-return]


def merge_adapter(base: nn.Module, name: str) -> nn.Module:
    """Return a model with an adapter merged into its weights: a plain model, all of whose parameters are trained.

    Args:
        base: the model that the adapter belongs to. It is changed.
        name: a folder or a name on the hub.

    Raises:
        OSError: if the adapter does not fit the model, or its weights are not in safetensors.
    """
    from peft import PeftModel

    check_folder(name)
    if _find(name, ADAPTER_WEIGHTS) is None:
        raise OSError(f"the adapter {name!r} has no weights in safetensors ({ADAPTER_WEIGHTS})")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            merged = PeftModel.from_pretrained(base, name, torch_device="cpu").merge_and_unload()
        except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
            raise OSError(f"the adapter {name!r} does not fit its base model: {_in_one_line(error)}") from None
    if missing := [warning for warning in said if "missing adapter keys" in str(warning.message)]:
        raise OSError(f"the adapter {name!r} does not fit its base model: {_in_one_line(missing[0].message)[:200]}")
    return merged.requires_grad_(True)  # type: ignore[no-any-return]


def outline(name: str) -> nn.Module:
    """Return a pretrained model without its weights, on the device "meta". Only its configuration is read.

    Raises:
        OSError: if there is no configuration, or it is not of a causal language model.
    """
    base = adapter_base(name)
    if base is not None:
        return outline(base)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=Path(name).is_dir())
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise OSError(f"{name!r} holds no model that transformers can load: {_in_one_line(error)}") from None


def forget_origin(folder: Path) -> None:
    """Take out of files of transformers where model and tokenizer came from, and how they were loaded.

    A tokenizer is saved with the arguments of its ``from_pretrained``, such as ``local_files_only``.
    """
    for file in (folder / TOKENIZER, folder / CONFIG):
        if file.is_file():
            settings = json.loads(file.read_text(encoding="utf-8"))
            kept = {name: value for name, value in settings.items() if not _is_origin(name, value)}
            if kept != settings:
                text = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False)
                file.write_text(text + "\n", encoding="utf-8")


def _is_origin(name: str, value: Any) -> bool:
    is_place = name.endswith(("_file", "_files", "_path", "_dir")) and isinstance(value, str) and os.path.isabs(value)
    return name in ORIGIN or is_place


def _adapter_config(name: str) -> Any:
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(name)
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"the adapter in {name!r} has an unknown configuration: {_in_one_line(error)}") from None


def _in_one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
