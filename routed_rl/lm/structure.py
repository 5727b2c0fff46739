"""Where the parts of a causal language model of transformers are: blocks, MLPs, experts, the norm before the output.

They are found by structure, so that a new family needs no entry in a list. In a block, attention is any module whose
``forward`` takes a mask. Of the other linear layers, those with one parent are an MLP if their sizes fit, for residual
width ``D`` and ``W`` hidden units:

- one layer ``D → W`` and one ``W → D``;
- two layers ``D → W``, gate and up, and one ``W → D``;
- one fused layer ``D → 2 W``, the gates of all units and then their values, and one ``W → D``.

If ``D = W``, the layer that was registered last is the one out of the units. A block is a mixture of experts if a
module outside attention holds the weights of several experts in one tensor, ``(E, …, …)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from routed_rl.routing import Hidden
from routed_rl.routing.layers import CONVOLUTIONS, is_linear, size_name
from routed_rl.routing.site import find_module


def blocks(model: nn.Module) -> list[str]:
    """Return the names of a model's blocks, in order: the modules of its longest list.

    Raises:
        ValueError: if the model has no list of modules.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks")
    name = max(lists, key=lambda known: len(lists[known]))
    return [f"{name}.{i}" for i in range(len(lists[name]))]


def stream_width(model: Any) -> int:
    """Return the number of residual dimensions. OPT-350m's token embedding has fewer."""
    config = getattr(model, "config", None)
    known = getattr(config.get_text_config(), "hidden_size", None) if config is not None else None
    return int(known or model.get_input_embeddings().weight.shape[1])


def mlp(model: nn.Module, layer: int, projections: str | None = None) -> Hidden:
    """Return where the hidden units of a layer's MLP are.

    Args:
        layer: the number of its block, from 0.
        projections: for a model whose MLPs are not found by structure, the names of the modules into the units and of
            the one out of them, with ``{}`` for the layer. Several names before the colon are separated by commas::

                "model.layers.{}.mlp.gate_proj,model.layers.{}.mlp.up_proj:model.layers.{}.mlp.down_proj"

    Raises:
        ValueError: for a layer that the model does not have, a mixture of experts, or an MLP that is not found (the
            message lists the block's linear layers). With ``projections``: for modules that the model does not have or
            that do not fit each other, and for a gated MLP of which one module is missing.
    """
    if projections is not None:
        return _named(model, layer, projections)
    block = _block(model, layer)
    if _experts(model, block):
        raise ValueError(
            f"{block} is a mixture of experts, which gets no new hidden units: use adapters, or name the projections "
            "of a shared expert"
        )
    found = [hidden for names in _siblings(model, block) if (hidden := _fitting(model, names))]
    if len(found) != 1:
        linear = [name for name, module in model.get_submodule(block).named_modules(prefix=block) if is_linear(module)]
        raise ValueError(
            f"{'no' if not found else 'more than one'} MLP was found in {block}: pass projections, the names of the "
            f"modules into and out of its hidden units. Its linear layers are {', '.join(linear) or 'none'}"
        )
    return found[0]


@dataclass(frozen=True)
class FeedForward:
    """What follows attention in a block: an MLP, or a mixture of experts.

    Attributes:
        linear: its linear layers, for adapters. A mixture of experts keeps its weights in other modules. There they are
            all linear layers of the block: those of attention, and of experts that every token uses.
        last: the modules that hold the output projections. In a mixture these modules hold all weights of the experts.
        output: the module whose output is added to the residual stream. OPT's is ``(B * T, D)``, others' ``(B, T, D)``.
    """

    linear: tuple[str, ...]
    last: tuple[str, ...]
    output: str


def feed_forward(model: nn.Module, layer: int, projections: str | None = None) -> FeedForward:
    """Return the names of the modules of a layer's MLP or mixture of experts.

    Args:
        layer, projections: as for :func:`mlp`.

    Raises:
        ValueError: as :func:`mlp`, but not for a mixture of experts.
    """
    if projections is None:
        block = _block(model, layer)
        if experts := _experts(model, block):
            inside = model.get_submodule(block).named_modules(prefix=block)
            linear = tuple(name for name, module in inside if is_linear(module))
            return FeedForward(linear, tuple(experts), f"{block}.{experts[0].removeprefix(block).split('.')[1]}")
    hidden = mlp(model, layer, projections)
    return FeedForward((*hidden.producers, hidden.consumer), (hidden.consumer,), hidden.consumer)


@torch.no_grad()
def before_output(model: Any) -> list[str]:
    """Return the names of the modules between the last block and the output embedding, in order, from a trial run.

    Most models have a norm there. OPT-350m has a projection and no norm. Operations that are not modules, such as a
    scale of the logits, are not in the list.
    """
    last, head = model.get_submodule(blocks(model)[-1]), model.get_output_embeddings()
    called: list[str] = []
    between = False

    def begin(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal between
        between = True

    def end(module: nn.Module, args: Any) -> None:
        nonlocal between
        between = False

    training, device = model.training, next(model.parameters()).device
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.callback(last.register_forward_hook(begin).remove)
        stack.callback(head.register_forward_pre_hook(end).remove)
        for name, module in model.named_modules():
            if not any(module.children()) and module is not head:
                see = lambda module, args, name=name: called.append(name) if between else None  # noqa: E731
                stack.callback(module.register_forward_pre_hook(see).remove)
        model.eval()(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device), use_cache=False)
    return called


def _block(model: nn.Module, layer: int) -> str:
    names = blocks(model)
    if not 0 <= layer < len(names):
        raise ValueError(f"layer must be within 0 … {len(names) - 1}, got {layer}")
    return names[layer]


def _outside_attention(model: nn.Module, block: str) -> Iterator[tuple[str, nn.Module]]:
    """Give the names and modules of a block that are not attention, nor in it."""
    for name, module in model.get_submodule(block).named_children():
        if not _takes_mask(module):
            yield f"{block}.{name}", module
            yield from _outside_attention(model, f"{block}.{name}")


def _takes_mask(module: nn.Module) -> bool:
    return any("mask" in argument for argument in inspect.signature(module.forward).parameters)


def _experts(model: nn.Module, block: str) -> list[str]:
    """Return the names of the modules that hold the weights of several experts in one tensor."""
    return [
        name
        for name, module in _outside_attention(model, block)
        if not isinstance(module, CONVOLUTIONS) and any(own.ndim == 3 for own in module.parameters(recurse=False))
    ]


def _siblings(model: nn.Module, block: str) -> list[list[str]]:
    """Return the names of a block's linear layers outside attention, those of one parent together."""
    found: dict[str, list[str]] = {}
    for name, module in _outside_attention(model, block):
        if is_linear(module):
            found.setdefault(name.rpartition(".")[0], []).append(name)
    return list(found.values())


def _fitting(model: nn.Module, names: Sequence[str]) -> Hidden | None:
    """Return linear layers of one parent as an MLP; None if their sizes do not fit."""
    width, sizes = stream_width(model), {name: _sizes(model.get_submodule(name)) for name in names}
    for consumer in reversed(names):
        producers = tuple(name for name in names if name != consumer)
        units, out = sizes[consumer]
        known = {1: ([units], [units, units]), 2: ([2 * units],)}  # parts: outputs of the producers
        for parts, outputs in known.items():
            if out == width and [sizes[name] for name in producers] in [[(width, n) for n in of] for of in outputs]:
                hidden = Hidden(producers, consumer, parts)
                return None if _is_normed(model, hidden, units) else hidden
    return None


def _is_normed(model: nn.Module, hidden: Hidden, units: int) -> bool:
    """Return whether another module between the projections has a parameter per hidden unit, as BitNet's norm."""
    parent = model.get_submodule(hidden.consumer.rpartition(".")[0])
    if _takes_mask(parent):  # the block itself, which in OPT holds the projections, beside its norms
        return False
    others = [module for module in parent.children() if not is_linear(module)]
    return any(units in parameter.shape for module in others for parameter in module.parameters())


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Return a linear layer's numbers of inputs and outputs."""
    return getattr(module, size_name(module, "input") or ""), getattr(module, size_name(module, "output") or "")


def _named(model: nn.Module, layer: int, projections: str) -> Hidden:
    """Return the MLP that a user has named."""
    into, colon, out = projections.partition(":")
    if not (colon and "{}" in into and "{}" in out) or "," in out:
        raise ValueError(
            f"projections must be like 'layers.{{}}.mlp.up:layers.{{}}.mlp.down', with {{}} for the layer, got "
            f"{projections!r}"
        )
    producers = [name.strip().replace("{}", str(layer)) for name in into.split(",")]
    consumer = out.strip().replace("{}", str(layer))
    modules = {name: find_module(model, name) for name in (*producers, consumer)}
    sizes = {name: _sizes(module) for name, module in modules.items() if is_linear(module)}
    for name in producers:
        parent = name.rpartition(".")[0]
        beside = [
            f"{parent}.{child}" if parent else child
            for child, module in model.get_submodule(parent).named_children()
            if is_linear(module) and _sizes(module) == sizes.get(name)
        ]
        if missing := [other for other in beside if other not in modules]:
            raise ValueError(
                f"projections name {name!r}, but not {missing[0]!r} beside it, of the same size: a gated MLP needs "
                "both its gate and its up projection before the colon, separated by a comma"
            )
    fused = len(producers) == 1 and consumer in sizes and sizes.get(producers[0], (0, 0))[1] == 2 * sizes[consumer][0]
    hidden = Hidden(tuple(producers), consumer, parts=2 if fused else 1)
    hidden.width(model)  # raises ValueError for modules that do not fit
    return hidden
