"""Divergence of a student from its teacher, without the logits of all positions at once.

``N`` positions, ``D`` dimensions of the last hidden states, ``V`` vocabulary. The logits of a batch are what fills a
memory: with 32,768 tokens, those of 4,096 positions are half a gigabyte, and a divergence written out keeps several of
that size, for its backward pass too. Here they are computed for a few positions at a time, with their gradient, and
dropped (as Liger-Kernel's fused losses do; Hsu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 128
"""Positions at a time."""

Target = Callable[[slice, Tensor], Tensor]
"""``(C, V)`` log-probabilities that are aimed at, of some positions, given those that the student has; a new tensor."""


@dataclass(frozen=True)
class Head:
    """What makes logits of the last hidden states: a linear layer, whose results may be capped as Gemma-2's are.

    Attributes:
        weight: ``(V, D)``; None: what comes in are logits already.
        bias: ``(V,)``.
        cap: ``c`` of ``c * tanh(logits / c)``.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """``(…, V)`` from ``(…, D)``."""
        logits = hidden if self.weight is None else F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def as_computed(self, kind: str) -> Head:
        """With its tensors in the precision in which a kind of device multiplies here, also where that is automatic."""
        if self.weight is None or not torch.is_autocast_enabled(kind):
            return self
        dtype = torch.get_autocast_dtype(kind)
        return Head(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype), self.cap)


def teacher_target(hidden: Tensor, head: Head) -> Target:
    """A teacher's log-probabilities, computed when they are needed from its last hidden states, ``(N, D)``."""
    computed = head.as_computed(hidden.device.type)
    return lambda part, log_q: _log_softmax(computed(hidden[part]))


def top_k_target(log_p: Tensor, tokens: Tensor, rest: Tensor) -> Target:
    """The teacher's ``k`` likeliest tokens, and all others as one: nothing is asked of how the student divides among
    them what they have together.

    So the divergence is never more than that of the whole vocabularies, equal to it where the k are all, and 0 for a
    student that agrees on all that is known of the teacher. (Were the k scaled up to a sum of 1, as is often done, the
    student would learn that all others are impossible.)

    Args:
        log_p: ``(N, k)``; of each position.
        tokens: ``(N, k)``; which they are.
        rest: ``(N,)``; the log-probability of all others together.
    """

    def target(part: slice, log_q: Tensor) -> Tensor:
        # The divergence of the buckets is that from the distribution which divides the rest as the student does; and so
        # are its gradients, q - p, for how the rest is divided changes nothing.
        of_rest = log_q.scatter(-1, tokens[part], float("-inf")).logsumexp(-1, keepdim=True)
        return (log_q + (rest[part, None].to(log_q) - of_rest)).scatter_(-1, tokens[part], log_p[part].to(log_q))

    return target


def divergence(hidden: Tensor, head: Head, target: Target, chunk: int = CHUNK) -> Tensor:
    """The sum over positions of ``KL(p; q) = Σ_v p(v) (log p(v) - log q(v))``: ``p`` is aimed at, ``q`` the student's.

    Gradients of what ``hidden`` and the head's tensors hold are computed along with it, in single precision or better
    where they are sums over positions; there are no second ones.

    Args:
        hidden: ``(N, D)``; the student's last hidden states.
        target: :func:`teacher_target` or :func:`top_k_target`.
        chunk: how many positions' logits there are at a time.
    """
    total: Tensor = _Divergence.apply(hidden, head.weight, head.bias, head.cap, target, chunk)
    return total


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, cap: float | None, target: Any, chunk: int
    ) -> Tensor:
        kind, wide = hidden.device.type, torch.promote_types(hidden.dtype, torch.float32)
        head = Head(weight, bias, cap).as_computed(kind)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(tensor, dtype=wide) if needed and tensor is not None else None
            for tensor, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                logits = head(hidden[part])
                log_q = _log_softmax(logits)
                gap = target(part, log_q).to(wide)
                p = gap.exp()
                # What is impossible for the teacher adds nothing, though its logarithm is infinite.
                total += gap.sub_(log_q).mul_(p).masked_fill_(p == 0, 0.0).sum()
                if not any(ctx.needs_input_grad):
                    continue
                slope = log_q.exp_().sub_(p)
                if cap is not None:
                    slope.mul_(1 - (logits / cap).square())
                if of_bias is not None:
                    of_bias += slope.sum(0)
                slope = slope.to(logits.dtype)
                if of_hidden is not None:
                    of_hidden[part] = slope if head.weight is None else slope @ head.weight
                if of_weight is not None:
                    x = hidden[part].to(slope.dtype)
                    if slope.dtype == wide:
                        of_weight.addmm_(slope.mT, x)
                    else:
                        of_weight += slope.mT @ x
        gradients = zip((of_hidden, of_weight, of_bias), (hidden, weight, bias), strict=True)
        ctx.save_for_backward(*(None if slope is None else slope.to(tensor.dtype) for slope, tensor in gradients))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        # In place, for one is as large as the vocabulary; a second backward pass is refused by torch.
        return *(None if slope is None else slope.mul_(grad) for slope in ctx.saved_tensors), None, None, None


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
