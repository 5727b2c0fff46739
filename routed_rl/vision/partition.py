"""A network whose code has two halves; each half learns from the data routed to it (Cloud et al. 2024, section 4.1).

Shapes: ``B`` samples, ``C`` channels of the code. The first half of the channels is *top*, the second is *bottom*. A
code may have positions, ``(B, C, …)``. The *groups* of samples are the labels of the route table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from routed_rl.routing import RouteTable, route_gradient

HALVES = ("top", "bottom")
"""The names of the two halves of a split code."""
_TINY = 1e-12
"""Added to each channel's variance, so that the correlation of a constant channel is 0 and not 0 / 0."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of a partitioned network for a batch.

    Attributes:
        code: the encoding, ``(B, C, …)``.
        decoded: the decoder's output, ``(B, …)``.
        top: the output of the certificate that reads only the top half, ``(B, …)``.
        bottom: the output of the certificate that reads only the bottom half, ``(B, …)``.
    """

    code: Tensor
    decoded: Tensor
    top: Tensor
    bottom: Tensor


class PartitionedNetwork(nn.Module):
    """An encoder, a decoder behind a routed code, and a certificate on each half of the code.

    The route of a sample decides which half of the code learns from the sample's reconstruction error. Decoders come
    after the route, so they learn from every sample. A certificate reads one detached half: it shows what this half
    contains, and never influences the encoder.

    Each group of a batch passes through the decoder by itself, as in the paper's public code. If they passed together,
    batch normalisation would carry the error of one group into the code of the other, and so around the route.

    Args:
        encoder: inputs → a code ``(B, C, …)`` with an even number of channels.
        decoder: one decoder for all groups, or one decoder per label of ``routes``, in the order of the labels.
        certificates: the networks that read the top and the bottom half, each ``(B, C/2, …)``.
        routes: group of samples → weight of each half.

    Raises:
        ValueError: if the modules of ``routes`` are not the two halves, or the number of decoders is neither 1 nor the
            number of labels.
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
            raise ValueError(f"the modules of routes must be {list(HALVES)}, got {list(routes.modules)}")
        if len(decoders) not in (1, len(routes.labels)):
            raise ValueError(
                f"there must be one decoder, or one for each of {len(routes.labels)} groups, got {len(decoders)}"
            )
        self.encoder = encoder
        self.decoders = nn.ModuleList(decoders)
        self.certificates = nn.ModuleDict(dict(zip(HALVES, certificates, strict=True)))
        self.routes = routes

    def forward(self, inputs: Tensor, labels: Tensor) -> Outputs:
        """Return the code, and the outputs of the decoder and of both certificates.

        Args:
            inputs: ``(B, …)``.
            labels: ``(B,)`` ids of the samples' groups in the route table. With separate decoders, all samples need a
                label.

        Raises:
            ValueError: for a label that the route table does not have, or for separate decoders and no label.
        """
        if len(self.decoders) > 1 and bool((labels < 0).any()):
            raise ValueError("with separate decoders, every sample needs a label of the route table, got -1")
        code = self.encoder(inputs)
        top, bottom = (self.certificates[name](half) for name, half in zip(HALVES, halves(code.detach()), strict=True))
        weights = self.routes.weights(labels).repeat_interleave(code.shape[1] // 2, dim=1)
        routed = route_gradient(code, weights)
        return Outputs(code, self._decode(routed, labels), top, bottom)

    def _decode(self, code: Tensor, labels: Tensor) -> Tensor:
        places = [(labels == group).nonzero().flatten() for group in labels.unique().tolist()]
        decoders = [self.decoders[int(labels[rows[0]]) if len(self.decoders) > 1 else 0] for rows in places]
        decoded = [decoder(code[rows]) for decoder, rows in zip(decoders, places, strict=True)]
        return torch.cat(decoded)[torch.cat(places).argsort()]


@dataclass(frozen=True)
class Penalties:
    """Weights of the regularizers (Cloud et al. 2024, section B). Routes do not limit their gradients."""

    l1: tuple[float, float] = (3e-3, 3e-3)
    """weights of the L1 norms of the top and the bottom half, over all samples"""
    correlation: float = 0.1
    """weight of the mean absolute correlation between the halves"""


def partition_loss(
    outputs: Outputs,
    error: Callable[[Tensor], Tensor],
    labels: Tensor,
    groups: Sequence[int],
    penalties: Penalties,
) -> Tensor:
    """Return the training loss: ``L_rec + l1 · L_L1 + correlation · L_corr`` plus the errors of both certificates.

    Args:
        outputs: the network's outputs for the batch.
        error: a function from an output ``(B, …)`` to the error of each sample, ``(B,)``.
        labels: ``(B,)`` ids of the samples' groups.
        groups: the groups whose errors and correlation train encoder and decoders. Of other samples, the encoder gets
            only the L1 penalty (as in the paper's public code).
        penalties: weights of the regularizers.

    Returns:
        A scalar. It is finite even if a group has no sample in the batch.
    """
    members = [(labels == group).to(outputs.code.dtype) for group in groups]
    taught = torch.stack(members).sum(dim=0)
    loss = group_balanced(error(outputs.decoded), members)
    if any(penalties.l1):
        loss = loss + sum(w * norm for w, norm in zip(penalties.l1, l1_norms(outputs.code), strict=True))
    if penalties.correlation:
        loss = loss + penalties.correlation * correlation(outputs.code, taught)
    return loss + error(outputs.top).mean() + error(outputs.bottom).mean()


def halves(code: Tensor) -> tuple[Tensor, Tensor]:
    """Return the top and bottom half of a code ``(B, C, …)``, each ``(B, C/2, …)``; ValueError if ``C`` is odd."""
    if code.shape[1] % 2:
        raise ValueError(f"a code must have an even number of channels, got shape {tuple(code.shape)}")
    top, bottom = code.chunk(2, dim=1)
    return top, bottom


def group_balanced(errors: Tensor, members: Sequence[Tensor]) -> Tensor:
    """Return the sum over groups of each group's mean error, so that all groups have the same weight.

    Args:
        errors: ``(B,)`` error of each sample.
        members: for each group ``(B,)``, 1 for its samples and 0 for others. A group without samples adds 0.
    """
    return torch.stack([_mean(errors, member) for member in members]).sum()


def l1_norms(code: Tensor) -> Tensor:
    """Return each half's L1 norm over channels, ``(2,)``: the mean over positions and samples."""
    return torch.stack([half.abs().sum(dim=1).mean() for half in halves(_flat(code))])


def correlation(code: Tensor, weights: Tensor) -> Tensor:
    """Return the mean absolute correlation in the batch, over all pairs of a top and a bottom channel.

    It takes the absolute value of the usual correlation, as the paper's public code does. (Section B of the paper
    prints the mean of absolute products.) Positions count as samples. A constant channel has correlation 0.

    Args:
        code: ``(B, C, …)``.
        weights: ``(B,)`` weights of the samples.
    """
    flat = _flat(code)
    weights = weights[:, None].expand(-1, flat.shape[2]).reshape(-1, 1)
    values = flat.movedim(1, 2).flatten(0, 1)
    centred = values - _mean(values, weights)
    top, bottom = (half / (_mean(half.square(), weights) + _TINY).sqrt() for half in halves(centred))
    return ((weights * top).T @ bottom / weights.sum().clamp(min=1)).abs().mean()


def _flat(code: Tensor) -> Tensor:
    """Return a code ``(B, C, …)`` as ``(B, C, P)``; a code without positions gets one."""
    return code.unsqueeze(2).flatten(2)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over samples, 0 if all weights are 0; weights are ``(B,)`` or ``(B, 1)``."""
    return (weights * values).sum(dim=0) / weights.sum().clamp(min=1)
