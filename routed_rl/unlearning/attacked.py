"""Files of attacked models."""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from routed_rl.lm.folders import ADAPTER
from routed_rl.lm.processes import gather, rank
from routed_rl.routing.layers import is_linear
from routed_rl.runs import read_json, write_json
from routed_rl.runs.files import writing
from routed_rl.unlearning.attacks import Attack, Relearning

ATTACKED = "model.safetensors"
"""File of all weights of an attacked model. Adapters are in the files of PEFT."""


def save_attacked(attacked: nn.Module, model: nn.Module, folder: Path) -> None:
    """Save what an attack has made of a model: all weights, or adapters of PEFT.

    If the attacked model is spread over processes, all of them must call this. The first one writes.

    Raises:
        ValueError: if it has other parameters than the model.
    """
    from peft import PeftModel

    found = gather(dict(attacked.named_parameters()))
    if rank() > 0:
        return
    if isinstance(attacked, PeftModel):
        with writing(folder):
            attacked.save_pretrained(str(folder), state_dict=found)
        (folder / "README.md").unlink(missing_ok=True)
        config = read_json(folder / ADAPTER)
        write_json(folder / ADAPTER, {**config, "base_model_name_or_path": None})  # it is a path on this machine
        return
    if {name: value.shape for name, value in found.items()} != {name: p.shape for name, p in model.named_parameters()}:
        raise ValueError("an attack must show a model with the parameters of the attacked model, or one of PEFT")
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / ATTACKED):
        save_file({name: value.contiguous() for name, value in found.items()}, folder / ATTACKED)


def load_attacked(model: nn.Module, folder: Path) -> nn.Module:
    """Return what :func:`save_attacked` has saved, given the model that was attacked, which is not changed."""
    attacked = copy.deepcopy(model).float()
    if not (folder / ATTACKED).exists():
        from peft import PeftModel

        return PeftModel.from_pretrained(attacked, str(folder), torch_device=str(next(attacked.parameters()).device))
    attacked.load_state_dict(load_file(folder / ATTACKED), strict=False)
    return attacked


def attacked_size(attack: Attack, model: nn.Module) -> int:
    """Return the size in bytes of all models that an attack shows, if they are saved.

    Args:
        model: the attacked model. It may be on the device "meta".
    """
    rank = attack.settings.rank if isinstance(attack, Relearning) else None
    if rank is None:
        numbers = sum(parameter.numel() for parameter in model.parameters())
    else:
        head = model.get_output_embeddings()  # type: ignore[operator]
        linear = (module for module in model.modules() if is_linear(module) and module is not head)
        numbers = sum(rank * sum(module.weight.shape) for module in linear)  # type: ignore[arg-type, misc]
    return 4 * numbers * len(attack.attempts) * len(attack.measured)
