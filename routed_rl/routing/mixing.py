"""Layers that mix the examples of a batch. After a site, they carry one example's loss around another one's weights.

``B`` examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from routed_rl.routing.attachment import as_hook
from routed_rl.routing.site import Site

ADVICE = (
    "give each label's examples a forward pass of their own, put the layer into evaluation mode, or use a norm that "
    "does not mix examples, such as GroupNorm"
)


def mixing_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers, by name, that are known to mix examples in training mode: batch normalisation."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def mixed_sites(model: nn.Module, sites: Mapping[str, Site], losses: Callable[[], Tensor]) -> list[str]:
    """Return the sites from which the loss of an example comes in part through other examples.

    It follows the gradient of the first example's loss back to the sites. If the gradient is not 0 at another example,
    something after the site mixes examples: batch normalisation, a contrastive loss, or code of your own. At such a
    site, the weights of one example do not decide what its loss teaches.

    >>> mixed_sites(model, sites, lambda: loss(model(x), y))  # doctest: +SKIP

    Args:
        model: in the mode in which it is trained, without a router attached.
        sites: name → site, as for :class:`~routed_rl.routing.GradientRouter`.
        losses: runs the model on a batch and returns the loss of each example, ``(B,)``.

    Raises:
        ValueError: for fewer than two losses, or a site whose tensor does not have ``B`` examples in its first
            dimension.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, x: Any) -> Tensor:
        first: Tensor = x[0] if isinstance(x, tuple) else x
        seen[name] = first if first.requires_grad else first.detach().requires_grad_()
        return seen[name]

    def on_input(name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (keep(name, args), *args[1:])

    def on_output(name: str, module: nn.Module, args: Any, output: Any) -> Any:
        return (keep(name, output), *output[1:]) if isinstance(output, tuple) else keep(name, output)

    with ExitStack() as stack, torch.enable_grad():
        for name, site in sites.items():
            module = model.get_submodule(site.module_name(name))
            if site.at == "input":
                handle = module.register_forward_pre_hook(as_hook(partial(on_input, name)))
            else:
                handle = module.register_forward_hook(as_hook(partial(on_output, name)))
            stack.callback(handle.remove)
        found = losses()
    if found.ndim != 1 or len(found) < 2:
        raise ValueError(f"losses must return the losses of two or more examples, (B,), got {tuple(found.shape)}")
    count = len(found)
    if bad := [name for name, x in seen.items() if x.shape[0] % count]:
        shape = tuple(seen[bad[0]].shape)
        raise ValueError(
            f"site {bad[0]!r}: its tensor of shape {shape} does not have {count} examples, as the losses do"
        )
    gradients = torch.autograd.grad(found[0], list(seen.values()), allow_unused=True)
    return [
        name
        for name, gradient in zip(seen, gradients, strict=True)
        if gradient is not None and bool(gradient.reshape(count, -1)[1:].any())
    ]
