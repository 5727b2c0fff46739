"""Naive reference: gradient routing one example at a time, with autograd and the paper's own expression."""

import torch


def part(x, units, dim=-1):
    """A mask over the units of a tensor, as float."""
    mask = torch.zeros(x.shape[dim], dtype=x.dtype)
    mask[slice(None) if units is None else units if isinstance(units, slice) else list(units)] = 1.0
    shape = [1] * x.ndim
    shape[dim] = -1
    return mask.view(shape)


def routed_activation(x, units, weight, dim, silence):
    """``m a + (1 - m) stop(a)``: ``m`` is ``weight`` on the units, else 1. ``silence`` sets ``a`` to 0 on the units."""
    on = part(x, units, dim)
    m = 1 - on + on * weight
    if silence and weight == 0:
        x = x * (1 - on)
    return m * x + (1 - m) * x.detach()


def gradients(model, sites, weights, mode, inputs, loss):
    """Parameter gradients of the summed loss, computed one example at a time.

    Args:
        sites: name → Site; weights: name → (B,) floats; loss: (output, example number) → scalar.
    """
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(inputs)):
        handles = []
        for name, site in sites.items():
            module = model.get_submodule(site.module_name(name))
            w, dim = float(weights[name][i]), site.dim_in(module)
            if mode == "parameter":
                continue

            def route(x, units=site.units, w=w, dim=dim):
                return routed_activation(x, units, w, dim, mode == "forward")

            if site.at == "output":
                handles.append(module.register_forward_hook(lambda m, a, y, route=route: route(y)))
            else:
                handles.append(module.register_forward_pre_hook(lambda m, a, route=route: (route(a[0]),)))
        own = dict(zip(total, torch.autograd.grad(
            loss(model(inputs[i : i + 1]), i), list(model.parameters()), allow_unused=True), strict=True))  # fmt: skip
        for handle in handles:
            handle.remove()
        for full, gradient in own.items():
            if gradient is None:
                continue
            for name, site in sites.items() if mode == "parameter" else ():
                module, _, leaf = full.rpartition(".")
                if module == site.module_name(name):
                    gradient = gradient * entry_weights(model.get_submodule(module), leaf, site, weights[name][i])
            total[full] += gradient
    return total


def entry_weights(module, leaf, site, weight):
    """The factor by which a site in mode "parameter" multiplies the gradient of each entry of a parameter."""
    parameter = getattr(module, leaf)
    ones = torch.ones_like(parameter)
    if site.at == "bias" and parameter.ndim > 1:
        return ones
    if site.units is None:
        return ones * weight
    if parameter.ndim == 1 and site.at == "input":
        return ones
    inputs_first = isinstance(module, torch.nn.Embedding) or type(module).__name__ == "Conv1D"  # GPT-2's
    axis = 0 if parameter.ndim == 1 else int((site.at != "input") == inputs_first)
    on = part(parameter, site.units, axis)
    return 1 - on + on * weight
