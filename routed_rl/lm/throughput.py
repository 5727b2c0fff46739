"""How much arithmetic training costs, and how fast this machine does it."""

from __future__ import annotations

import time

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from routed_rl.lm.processes import undistributed

SECONDS = 0.2
"""How long the machine is measured."""


def training_flops(model: nn.Module, length: int) -> int:
    """Return the floating-point operations of a training step per token, in rows of ``length`` tokens::

        6 P + 4 P_frozen + 12 · layers · heads · width of a head · length

    ``P`` and ``P_frozen`` are the numbers of trained and frozen weights in linear layers. An output layer counts, also
    if it shares its weights with the embedding. The embedding itself is a look-up and costs nothing.

    Each weight takes part in one multiplication and one addition in the forward pass. The backward pass does the same
    once for the gradient of the input and, unless the weight is frozen, once for the weight's own. Attention counts
    every pair of tokens in a row, as if none was masked. The formula is PaLM's (Chowdhery et al. 2022, appendix B).
    Norms, activations, biases and the optimizer are not counted.

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
    """Return the floating-point operations per second of this process's matrix products, measured for about 0.2 s.

    The number is that of the fastest product of two square matrices.
    """
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
