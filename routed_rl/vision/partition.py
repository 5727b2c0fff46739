"""A network whose code has two halves, each taught by the data that is routed to it (Cloud et al. 2024, section 4.1).

``B`` samples, ``C`` channels of the code (the first half is *top*, the second *bottom*), ``G`` groups of samples,
that is, labels of the route table. A code may have positions, ``(B, C, …)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from routed_rl.routing import RouteTable, route_gradient

HALVES = ("top", "bottom")
_TINY = 1e-12
"""Variance below which a channel counts as constant, and so uncorrelated with everything."""


@dataclass(frozen=True)
class Outputs:
    """What a partitioned network makes of a batch.

    Attributes:
        code: the encoding, ``(B, C, …)``.
        decoded: the decoder's output, ``(B, …)``.
        top: the output of the certificate that sees the top half alone, ``(B, …)``.
        bottom: that of the bottom half's.
    """

    code: Tensor
    decoded: Tensor
    top: Tensor
    bottom: Tensor


class PartitionedNetwork(nn.Module):
    """An encoder, a decoder that learns through the route table, and a certificate on each half of the code.

    The route decides which half of the code a sample's error may teach; decoders are downstream of it and learn from
    every sample. Certificates get a detached half: they show what is in it and never influence the encoder.

    Args:
        encoder: to a code ``(B, C, …)`` with an even number of channels.
        decoder: one for all groups, or a sequence of one per label of ``routes``, in order, for separate decoders.
        certificates: of the top and of the bottom half, each from ``(B, C/2, …)``.
        routes: group of samples → weight of each half.

    Raises:
        ValueError: if the modules of ``routes`` are not the two halves, or decoders and labels differ in number.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module | Sequence[nn.Module],
        certificates: tuple[nn.Module, nn.Module],
        routes: RouteTable,
    ) -> None:
        super().__init__()
        decoders = [decoder] if isinstance(decoder, nn.Module) else list(decoder)
        if routes.modules != HALVES:
            raise ValueError(f"routes must lead to the modules {list(HALVES)}, got {list(routes.modules)}")
        if len(decoders) not in (1, len(routes.labels)):
            raise ValueError(f"{len(routes.labels)} groups need one decoder or as many, got {len(decoders)}")
        self.encoder = encoder
        self.decoders = nn.ModuleList(decoders)
        self.certificates = nn.ModuleDict(dict(zip(HALVES, certificates, strict=True)))
        self.routes = routes

    def forward(self, inputs: Tensor, labels: Tensor) -> Outputs:
        """Encode, decode and certify.

        Args:
            inputs: ``(B, …)``.
            labels: ids of the samples' groups in the route table, ``(B,)``; separate decoders know no unlabelled ones.

        Raises:
            ValueError: for labels that the route table does not have.
        """
        code = self.encoder(inputs)
        top, bottom = (self.certificates[name](half) for name, half in zip(HALVES, halves(code.detach()), strict=True))
        weights = self.routes.weights(labels).repeat_interleave(code.shape[1] // 2, dim=1)
        routed = route_gradient(code, weights)
        outputs = [decoder(routed) for decoder in self.decoders]
        decoded = outputs[0]
        for group, output in enumerate(outputs[1:], start=1):
            decoded = torch.where((labels == group).view(-1, *(1,) * (output.ndim - 1)), output, decoded)
        return Outputs(code, decoded, top, bottom)


@dataclass(frozen=True)
class Penalties:
    """Weights of the regularisers, which reach all of the code whatever the route (Cloud et al. 2024, section B)."""

    l1: tuple[float, float] = (3e-3, 3e-3)
    """of the L1 norm of the top and of the bottom half"""
    correlation: float = 0.1
    """of the mean correlation between the halves"""


def partition_loss(
    outputs: Outputs,
    error: Callable[[Tensor], Tensor],
    labels: Tensor,
    groups: Sequence[int],
    penalties: Penalties,
) -> Tensor:
    """The loss of a partitioned network: ``L_rec + l1 · L_L1 + correlation · L_corr`` and both certificates' errors.

    Args:
        outputs: of the batch.
        error: from an output ``(B, …)`` to its error per sample, ``(B,)``.
        labels: ids of the samples' groups, ``(B,)``.
        groups: those that teach the encoder and decoders; the rest teach the certificates alone.
        penalties: weights of the regularisers.

    Returns:
        A scalar; finite also where the batch has no sample of a group.
    """
    members = [(labels == group).to(outputs.code.dtype) for group in groups]
    taught = torch.stack(members).sum(dim=0)
    loss = group_balanced(error(outputs.decoded), members)
    if any(penalties.l1):
        loss = loss + sum(w * norm for w, norm in zip(penalties.l1, l1_norms(outputs.code, taught), strict=True))
    if penalties.correlation:
        loss = loss + penalties.correlation * correlation(outputs.code, taught)
    return loss + error(outputs.top).mean() + error(outputs.bottom).mean()


def halves(code: Tensor) -> tuple[Tensor, Tensor]:
    """The top and the bottom half of a code ``(B, C, …)``, ``(B, C/2, …)`` each; ValueError if ``C`` is odd."""
    if code.shape[1] % 2:
        raise ValueError(f"a code must have an even number of channels, got shape {tuple(code.shape)}")
    top, bottom = code.chunk(2, dim=1)
    return top, bottom


def group_balanced(errors: Tensor, members: Sequence[Tensor]) -> Tensor:
    """The sum over groups of the group's mean error: groups weigh the same, however many samples they have.

    Args:
        errors: per sample, ``(B,)``.
        members: for each group, 1 for its samples and 0 for the others, ``(B,)``; a group without samples counts 0.
    """
    return torch.stack([_mean(errors, member) for member in members]).sum()


def l1_norms(code: Tensor, weights: Tensor) -> Tensor:
    """The mean over samples and positions of each half's L1 norm over channels, ``(2,)``; samples weighted ``(B,)``."""
    return torch.stack([_mean(half.abs().sum(dim=1).flatten(1).mean(dim=1), weights) for half in halves(_flat(code))])


def correlation(code: Tensor, weights: Tensor) -> Tensor:
    """The mean, over pairs of a top and a bottom channel, of the absolute correlation of the two in the batch.

    As in the public code: the absolute value of the usual correlation, not the mean of absolute products that section
    B of the paper prints. Positions count as samples. A constant channel is uncorrelated with all others.

    Args:
        code: ``(B, C, …)``.
        weights: of the samples, ``(B,)``.
    """
    flat = _flat(code)
    weights = weights[:, None].expand(-1, flat.shape[2]).reshape(-1, 1)
    values = flat.movedim(1, 2).flatten(0, 1)
    centred = values - _mean(values, weights)
    top, bottom = (half / (_mean(half.square(), weights) + _TINY).sqrt() for half in halves(centred))
    return ((weights * top).T @ bottom / weights.sum().clamp(min=1)).abs().mean()


def _flat(code: Tensor) -> Tensor:
    """``(B, C, P)`` from ``(B, C, …)``, with one position where a code has none."""
    return code.unsqueeze(2).flatten(2)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over samples, 0 if none has weight: values ``(B, …)``, weights ``(B,)`` or ``(B, 1)``."""
    return (weights * values).sum(dim=0) / weights.sum().clamp(min=1)
