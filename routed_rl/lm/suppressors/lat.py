"""LAT, latent adversarial training (Sheshadri et al. 2024): suppress while an adversary changes hidden states.

``B`` rows, ``T`` tokens a row, ``V`` tokens of the vocabulary, ``D`` residual dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.errors import UserError
from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import target_logits, target_losses
from routed_rl.lm.processes import undistributed
from routed_rl.lm.structure import stream_width
from routed_rl.lm.suppressors.depths import blocks_at
from routed_rl.lm.suppressors.suppressor import (
    Suppressor,
    brief,
    forget_examples,
    forget_targets,
    mean,
    retain_targets,
)
from routed_rl.lm.training import Objective

USUAL = (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))
SMALLEST = 1e-30
"""Added to the length of a gradient, which may be 0."""


def unlikelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``(B, T - 1)``: ``- log(1 - p(target))``, which is exact also where p is nearly 1.

    Args:
        logits: ``(B, T - 1, V)``.
        targets: ``(B, T - 1)``.
    """
    others = logits.scatter(-1, targets[..., None], -math.inf)
    return logits.logsumexp(dim=-1) - others.logsumexp(dim=-1)


@dataclass(frozen=True)
class Lat(Suppressor):
    """``- log(1 - p)`` of forget targets under the adversary's change, plus ``a * CE_retain``.

    In each step the adversary starts anew, and changes the residual streams of forget examples to make their targets
    more likely. At each position a change is at most ``r`` times as long as the state itself. The adversary takes
    ``n`` steps of projected gradient ascent. Each moves every position by ``2 / n`` of this length, along the
    gradient.

    In the authors' code the longest change is a fixed length, and the adversary takes 16 steps of AdamW. Both are
    replaced here, so that one default suits all models and a step's gradient does not depend on the parts of a batch.
    Retain targets in a forget example are trained under the change, too.
    """

    retain_weight: float = 3.0
    """weight of the retain loss: a"""
    radius: float = 0.3
    """longest change of a hidden state, as a share of the state's length: r"""
    inner_steps: int = 4
    """steps of the adversary in each gradient step: n"""
    depths: str | None = None
    """numbers of blocks before the residual streams that are changed, such as 8,16,24; None: a quarter, a half and
    three quarters of the model's blocks"""

    recipe = brief(steps=100, learning_rate=3e-4)

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`, where half of the rows are forget rows. The adversary runs the model on these."""
        return 1 + self.inner_steps / 2

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`.

        Raises:
            UserError: for depths that the model does not have, or a model that computes its blocks again.
        """
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise UserError(
                "lat changes what blocks give, so they cannot be computed again: leave out gradient_checkpointing"
            )
        names, width = blocks_at(model, self.depths, USUAL), stream_width(model)

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            inner = undistributed(trained)
            changed = _changed(batch)
            rows = changed.any(dim=1)
            if bool((~rows).all()):  # all processes must run the model equally often
                rows = torch.ones_like(rows)
            found = self._attack(inner, names, width, batch.rows(rows), changed[rows])
            whole = {
                name: change.new_zeros((*changed.shape, width)).index_put((rows,), change)
                for name, change in found.items()
            }
            with _adding(inner, whole, self.radius):
                logits = target_logits(trained, batch)
            forget = mean(unlikelihood(logits, batch.targets), forget_targets, batch)
            return forget + self.retain_weight * mean(target_losses(logits, batch), retain_targets, batch)

        return loss

    def _attack(
        self, model: nn.Module, names: list[str], width: int, batch: Batch, changed: Tensor
    ) -> dict[str, Tensor]:
        """Return the adversary's change of each stream, ``(B, T, D)`` within the unit ball at each position."""
        changes = {name: torch.zeros((*changed.shape, width), device=changed.device) for name in names}
        for _ in range(self.inner_steps):
            with torch.enable_grad():
                for change in changes.values():
                    change.requires_grad_(True)
                with _adding(model, changes, self.radius):
                    known = -target_losses(target_logits(model, batch), batch)
                risen = known.masked_fill(~forget_targets(batch), 0.0).sum()
                gradients = torch.autograd.grad(risen, list(changes.values()))
            for (name, change), gradient in zip(list(changes.items()), gradients, strict=True):
                length = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
                moved = change.detach() + 2 / self.inner_steps * gradient / (length + SMALLEST)
                moved = moved / torch.linalg.vector_norm(moved, dim=-1, keepdim=True).clamp_min(1.0)
                changes[name] = moved.masked_fill(~changed[..., None], 0.0)
        return changes


def _changed(batch: Batch) -> Tensor:
    """Return ``(B, T)`` bool: the positions of examples with forget targets."""
    return forget_examples(batch).gather(1, batch.examples.clamp_min(0)) & batch.real


@contextmanager
def _adding(model: nn.Module, changes: Mapping[str, Tensor], radius: float) -> Iterator[None]:
    """Add to the output of each block its change, times ``radius`` and the length of the block's own output."""

    def add(change: Tensor) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            stream = output if isinstance(output, Tensor) else output[0]
            length = torch.linalg.vector_norm(stream.detach(), dim=-1, keepdim=True)
            moved = stream + (radius * length * change).to(stream.dtype)
            return moved if isinstance(output, Tensor) else (moved, *output[1:])

        return hook

    with ExitStack() as stack:
        for name, change in changes.items():
            stack.callback(model.get_submodule(name).register_forward_hook(add(change)).remove)
        yield
