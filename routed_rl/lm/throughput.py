"""What training costs in arithmetic, and how near it comes to what the machine can do."""

from __future__ import annotations

import time

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from routed_rl.lm.processes import undistributed

SECONDS = 0.2
"""How long the machine is measured."""


def training_flops(model: nn.Module, length: int) -> int:
    """Floating-point operations of a training step per token, in rows of ``length`` tokens::

        6 P + 4 P_frozen + 12 · layers · heads · width of a head · length

    ``P`` are the weights of linear layers, an output layer's too, also where it shares them with the embedding, which
    is a look-up and costs nothing. Each takes part in a multiplication and an addition of the forward pass, and of the
    backward pass once for its input and once, unless it is frozen, for itself. Attention counts every pair of a row's
    tokens, as if none was masked. The formula is PaLM's (Chowdhery et al. 2022, appendix B); norms, activations, biases
    and the optimizer are not in it.

    Args:
        model: of transformers, distributed or not.
    """
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    products = sum((6 if weight.requires_grad else 4) * weight.numel() for weight in linear)
    config = undistributed(model).config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return products + 12 * config.num_hidden_layers * heads * width * length


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of this process's matrix products, measured for about 0.2 s: the best of
    products of square matrices."""
    size = 512 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    x @ x  # the first is slower
    times: list[float] = []
    until = time.perf_counter() + SECONDS
    while not times or time.perf_counter() < until:
        _wait(device)
        start = time.perf_counter()
        x @ x
        _wait(device)
        times.append(time.perf_counter() - start)
    return float(2 * size**3 / min(times))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
