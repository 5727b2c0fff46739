"""Training that depends only on (model, data, seed): seed and epoch number set an epoch's order and random draws."""

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
    """Return ``build()`` with initial weights that depend only on the seed; torch's global random state is restored."""
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
    """Train for one pass over all samples, in random order; return the mean loss.

    Args:
        optimizer: the optimizer of the parameters to train.
        loss: a function from sample indices ``(B,)`` and a generator, both on the CPU, to a scalar loss.
        samples: the number of samples.
        batch_size: ``B``; the last batch may be smaller.
        seed: the seed of the run.
        epoch: the number of the pass. Seed and epoch set the order of the samples and the generator.

    Raises:
        FloatingPointError: if the mean loss is not finite.
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
        raise FloatingPointError(f"the mean loss of epoch {epoch} is {mean}: try a lower learning rate")
    return mean
