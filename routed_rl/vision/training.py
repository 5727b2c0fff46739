"""Training as a function of (model, data, seed): an epoch's order and draws come from the seed and its number alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from routed_rl.runs import derive_seed

M = TypeVar("M", bound=nn.Module)


def seeded(build: Callable[[], M], seed: int) -> M:
    """A model with the initial weights that the seed gives; torch's global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return build()


def train_epoch(
    optimizer: Optimizer,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    samples: int,
    batch_size: int,
    seed: int,
    epoch: int,
) -> float:
    """One pass over all samples in random order.

    Args:
        optimizer: of what is trained.
        loss: from indices of samples ``(B,)`` and a generator, both on the CPU, to a scalar.
        samples: how many there are.
        batch_size: ``B``; the last batch may be smaller.
        seed: of the run.
        epoch: number of the pass, which with the seed fixes the order and the generator.

    Returns:
        The mean loss.

    Raises:
        FloatingPointError: if that is no finite number.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
    total = torch.zeros(())
    for index in torch.randperm(samples, generator=generator).split(batch_size):
        optimizer.zero_grad(set_to_none=True)
        value = loss(index, generator)
        value.backward()
        optimizer.step()
        total = total.to(value.device) + value.detach() * len(index)
    mean = float(total) / samples
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss is {mean} in epoch {epoch}")
    return mean
