"""Divergence of a student from its teacher, without the logits of all positions in memory at once.

``N`` positions, ``D`` dimensions of the last hidden states, ``V`` vocabulary. The logits of a batch need the most
memory: with 32,768 tokens in the vocabulary, those of 4,096 positions take half a gigabyte. The usual formula for a
divergence keeps several tensors of that size, also for its backward pass. Here logits and their gradient are computed
for a few positions at a time, and dropped (as in Liger-Kernel's fused losses; Hsu et al. 2024).
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
"""A function that returns the target log-probabilities of some positions, ``(C, V)``, in a new tensor. Its second
argument is the student's log-probabilities there."""


@dataclass(frozen=True)
class Head:
    """The last layer of a model: makes logits from hidden states by a linear layer, and may cap them as Gemma-2 does.

    Attributes:
        weight: ``(V, D)``. None: the inputs are already logits.
        bias: ``(V,)``.
        cap: ``c`` of ``c * tanh(logits / c)``.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits ``(…, V)`` for hidden states ``(…, D)``."""
        logits = hidden if self.weight is None else F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def as_computed(self, kind: str) -> Head:
        """Return the head with its tensors in the precision in which autocast multiplies on this kind of device."""
        if self.weight is None or not torch.is_autocast_enabled(kind):
            return self
        dtype = torch.get_autocast_dtype(kind)
        return Head(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype), self.cap)


def teacher_target(hidden: Tensor, head: Head) -> Target:
    """Return a target: a teacher's log-probabilities, computed from its last hidden states ``(N, D)`` when needed."""
    computed = head.as_computed(hidden.device.type)
    return lambda part, log_q: _log_softmax(computed(hidden[part]))


def top_k_target(log_p: Tensor, tokens: Tensor, rest: Tensor) -> Target:
    """Return a target: the teacher's ``k`` most likely tokens, and all other tokens together as one.

    The student is free in how it divides the probability of these other tokens among them.

    So the divergence is at most that of the whole vocabularies, and equal to it if ``k`` is the vocabulary's size. It
    is 0 for a student that agrees with all that is known of the teacher. (Often the ``k`` probabilities are scaled up
    to a sum of 1 instead. Then the student would learn that all other tokens are impossible.)

    Args:
        log_p: ``(N, k)``: the log-probabilities of the ``k`` tokens at each position.
        tokens: ``(N, k)``: their ids.
        rest: ``(N,)``: the log-probability of all other tokens together.
    """

    def target(part: slice, log_q: Tensor) -> Tensor:
        # The target divides the rest as the student does. This gives the divergence of the k + 1 buckets. It also gives
        # its gradients, q - p, because how the rest is divided does not change that divergence.
        of_rest = log_q.scatter(-1, tokens[part], float("-inf")).logsumexp(-1, keepdim=True)
        return (log_q + (rest[part, None].to(log_q) - of_rest)).scatter_(-1, tokens[part], log_p[part].to(log_q))

    return target


def divergence(hidden: Tensor, head: Head, target: Target, chunk: int = CHUNK) -> Tensor:
    """Return the sum over positions of ``KL(p; q) = Σ_v p(v) (log p(v) - log q(v))``: ``p`` target, ``q`` student.

    The gradients of ``hidden`` and of the head's tensors are computed at the same time. Those that are sums over
    positions are in single precision or better. There are no second derivatives.

    Args:
        hidden: ``(N, D)``: the student's last hidden states.
        target: from :func:`teacher_target` or :func:`top_k_target`.
        chunk: positions whose logits are in memory at a time.
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
                # A token that is impossible for the teacher adds nothing, though its log-probability is infinite.
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
        # In place, because one gradient is as large as the head's weight. torch refuses a second backward pass.
        return *(None if slope is None else slope.mul_(grad) for slope in ctx.saved_tensors), None, None, None


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
