"""Routed low-rank adapters (LoRA, Hu et al. 2021): one of them learns the forget set, and is then deleted.

They serve pretrained models that are too large to train as a whole. The adapters take the places of the original and
the new units of Expand, Route, Ablate, and learn with the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from routed_rl.lm.era import NEW, ORIGINAL
from routed_rl.lm.structure import blocks, feed_forward
from routed_rl.routing import Site
from routed_rl.routing.layers import is_linear
from routed_rl.routing.site import Mode, find_module

KEEP, FORGET = "keep", "forget"
COLUMNS = {KEEP: ORIGINAL, FORGET: NEW}
"""The column of Expand, Route, Ablate that each adapter stands for in route tables and weights."""


@dataclass(frozen=True)
class Adapters:
    """A model with two low-rank adapters on some of its linear layers, whose outputs are added::

        y = W x + b + B_keep A_keep x + B_forget A_forget x

    Attributes:
        model: the model with its adapters. Only the ``A`` and ``B`` are trained.
        trained: names of the parameters that were trained in the plain model.
    """

    model: PeftModel
    trained: frozenset[str]

    def sites(self, mode: Mode) -> dict[str, Site]:
        """Return the sites where both adapters are routed: their outputs or, in mode "parameter", their parameters."""
        sites = {}
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                for adapter, column in COLUMNS.items():
                    for part in ("lora_A", "lora_B") if mode == "parameter" else ("lora_B",):
                        sites[f"{name}.{part}.{adapter}"] = Site(column=column)
        return sites


def add_adapters(model: nn.Module, rank: int, seed: int, targets: Sequence[str] | None = None) -> Adapters:
    """Add the adapters ``keep`` and ``forget`` to linear layers of a model, and freeze its own parameters.

    At first the model computes the same as before: ``A`` starts at random, ``B`` at 0.

    Args:
        rank: of each adapter.
        seed: fixes the random numbers of ``A``.
        targets: names of linear layers. None: all linear layers into and out of the MLPs. A mixture of experts keeps
            its weights in other modules, so there: all linear layers of its block, which are those of attention.

    Raises:
        ValueError: for a rank below 1, names that the model does not have, or modules that are not linear layers. If
            ``targets`` is None, also for a model whose MLPs are not found by structure, as :func:`~routed_rl.lm.mlp`.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"the adapters' rank must be at least 1, got {rank!r}")
    if targets is None:
        targets = [name for layer in range(len(blocks(model))) for name in feed_forward(model, layer).linear]
    modules = [find_module(model, name) for name in targets]
    if unfit := [name for name, module in zip(targets, modules, strict=True) if not is_linear(module)]:
        raise ValueError(f"adapters need linear layers, and these modules are not: {', '.join(unfit)}")
    if not modules:
        raise ValueError("adapters need at least one linear layer, got no targets")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # what an adapter adds is multiplied by alpha / rank
        target_modules=list(targets),
        fan_in_fan_out=not any(isinstance(module, nn.Linear) for module in modules),  # GPT-2's layers
        task_type="CAUSAL_LM",
    )
    trained = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config, adapter_name=KEEP)
        adapted.add_adapter(FORGET, copy(config))
    # PeftModel.set_adapter takes one adapter only. The layers' own takes several, and trains all active ones.
    adapted.base_model.set_adapter([KEEP, FORGET])
    return Adapters(adapted, trained)


def delete_forget(adapters: Adapters) -> Any:
    """Delete ``forget``, merge ``keep`` into the weights, and return the plain model.

    ``W`` becomes ``W + B_keep A_keep``. The parameters that were trained before are trained
    again. The adapters cannot be used any more.
    """
    adapters.model.delete_adapter(FORGET)
    plain = adapters.model.merge_and_unload(adapter_names=[KEEP])
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in adapters.trained)
    return plain
