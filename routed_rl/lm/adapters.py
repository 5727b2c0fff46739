"""Low-rank adapters (LoRA, Hu et al. 2021), for pretrained models that are too large to train as a whole.

- :func:`add_adapters` adds two that are routed: one of them learns the forget set, and is then deleted. They take the
  places of the original and the new units of Expand, Route, Ablate, and learn with the same weights.
- :func:`add_low_rank` adds one, which is trained in place of all weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from routed_rl.lm.era import NEW, ORIGINAL
from routed_rl.lm.structure import blocks, feed_forward
from routed_rl.routing import Site
from routed_rl.routing.layers import is_linear
from routed_rl.routing.site import Mode, find_module

if TYPE_CHECKING:
    from peft import PeftModel

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
        from peft.tuners.lora import LoraLayer

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
    from peft import LoraConfig, get_peft_model

    check_rank(rank)
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
    adapters = Adapters(adapted, trained)
    turn_on(adapters)
    return adapters


def turn_on(adapters: Adapters, *names: str) -> None:
    """Turn on these adapters, for computing and for training, and turn off the others. No names: both."""
    # PeftModel.set_adapter takes one adapter only. The layers' own takes several, and trains all active ones.
    adapters.model.base_model.set_adapter(list(names or (KEEP, FORGET)))


@contextmanager
def forget_scaled(adapters: Adapters, scale: float) -> Iterator[None]:
    """Within the block, multiply what the adapter ``forget`` adds by ``scale``. 0: the model computes as without it."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in adapters.model.modules() if isinstance(module, LoraLayer)]
    before = [layer.scaling[FORGET] for layer in layers]
    for layer, usual in zip(layers, before, strict=True):
        layer.scaling[FORGET] = scale * usual
    try:
        yield
    finally:
        for layer, usual in zip(layers, before, strict=True):
            layer.scaling[FORGET] = usual


def delete_forget(adapters: Adapters) -> Any:
    """Delete ``forget``, merge ``keep`` into the weights, and return the plain model.

    ``W`` becomes ``W + B_keep A_keep``. The parameters that were trained before are trained
    again. The adapters cannot be used any more.
    """
    adapters.model.delete_adapter(FORGET)
    return _merged(adapters, KEEP)


def merge_adapters(adapters: Adapters) -> Any:
    """Merge both adapters into the weights, and return the plain model, as :func:`delete_forget` does."""
    return _merged(adapters, KEEP, FORGET)


def _merged(adapters: Adapters, *names: str) -> Any:
    plain = adapters.model.merge_and_unload(adapter_names=list(names))
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in adapters.trained)
    return plain


# --- one adapter in place of all weights -----------------------------------------------------------


def check_rank(rank: int) -> None:
    """Raise ValueError for a rank that is not a whole number above 0."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"the adapters' rank must be at least 1, got {rank!r}")


def check_plain(model: nn.Module) -> None:
    """Raise ValueError for a model that has adapters already."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("the model has adapters: merge them into its weights first, by model.merge_and_unload()")


def sharing_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose weights are the model's own tensors, so that the copy takes no memory.

    It is for training that leaves these weights as they are. Buffers are copied. All parameters require gradients.
    """
    return copy_with(model, lambda _, own: nn.Parameter(own.detach()))


def copy_with(model: nn.Module, parameter_of: Callable[[str, nn.Parameter], nn.Parameter]) -> Any:
    """Return a copy of a model with other parameters.

    Args:
        parameter_of: gives the copy's parameter for a name and a parameter of the model.
    """
    known: dict[int, Any] = {id(own): parameter_of(name, own) for name, own in model.named_parameters()}
    return deepcopy(model, known)


def add_low_rank(model: nn.Module, rank: int, seed: int) -> PeftModel:
    """Add one adapter, in place, to all linear layers whose weights are trained, and train it instead of all weights.

    The layer that makes the logits gets none. At first the model computes the same as before: ``A`` starts at random,
    ``B`` at 0. What the adapter adds is multiplied by 2. An adapter of a model in half precision is in float32.

    Args:
        rank: of the adapter.
        seed: fixes the random numbers of ``A``.

    Returns:
        The model as PEFT wraps it. ``model`` itself has the adapters too, and computes the same.

    Raises:
        ValueError: for a rank below 1, a model that has adapters already, or a model none of whose linear layers is
            trained. Experts of a mixture are not linear layers.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import PreTrainedModel

    check_rank(rank)
    check_plain(model)
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linear = {name: module for name, module in model.named_modules() if is_linear(module) and module is not head}
    trained = [name for name, module in linear.items() if module.weight.requires_grad]  # type: ignore[union-attr]
    if not trained:
        raise ValueError("none of the weights that are trained belongs to a linear layer, so adapters learn nothing")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear" if len(trained) == len(linear) else trained,
        fan_in_fan_out=not any(isinstance(module, nn.Linear) for module in linear.values()),  # GPT-2's layers
        task_type="CAUSAL_LM" if isinstance(model, PreTrainedModel) else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)  # type: ignore[arg-type, return-value]


def merge_low_rank(adapted: PeftModel) -> Any:
    """Return a plain model with its adapter merged into weights of its own. The adapter cannot be used any more.

    In half precision a merged weight is rounded. So changes that are much smaller than the weights are lost.
    """
    for name, parameter in adapted.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.clone()  # they may be another model's
    return adapted.merge_and_unload()
