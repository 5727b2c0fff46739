"""RepNoise (Rosati et al. 2024): turn hidden layers' outputs on the forget set into noise, to leave less to relearn.

``B`` rows, ``T`` tokens a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import FORGET_LABEL, Batch
from routed_rl.lm.losses import promoted, target_losses
from routed_rl.lm.processes import undistributed
from routed_rl.lm.streams import outputs
from routed_rl.lm.structure import before_output, blocks, feed_forward
from routed_rl.lm.suppressors.maxent import MaxEnt
from routed_rl.lm.training import Objective

KERNELS = 5


def squared_mmd(sample: Tensor, other: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples, ``(N, K)`` and ``(M, K)``.

    This is the biased estimate, which includes the kernel of each vector with itself. It is never negative, and 0 for
    equal samples. The kernel is a sum of five Gaussians, ``exp(-d² / (b * 2^i))``. Their width ``b`` is a quarter of
    the mean ``d²`` between any two vectors, and has no gradient.

    Raises:
        ValueError: for a sample of fewer than two vectors.
    """
    if min(len(sample), len(other)) < 2:
        raise ValueError(f"a discrepancy needs samples of 2 or more, got {len(sample)} and {len(other)}")
    both = promoted(torch.cat([sample, other]))
    # Matrix products would lose small distances, most of all in half precision.
    distances = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()
    width = distances.detach().sum() / (len(both) * (len(both) - 1)) / 4
    width = width.clamp_min(torch.finfo(width.dtype).tiny)
    kernel = torch.stack([torch.exp(-distances / (width * 2**i)) for i in range(KERNELS)]).sum(dim=0)
    n = len(sample)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


@dataclass(frozen=True)
class RepNoise(MaxEnt):
    """MaxEnt plus ``CE_retain + b * N - a * log(1 + H)`` (UNDO's public code).

    The n-th forget row is paired with the n-th retain row. Only positions where their tokens differ count.

    ``N`` compares the MLP's outputs for forget rows, one vector a row, with normal noise: the mean over layers of
    ``squared_mmd``.

    ``H`` is a loss of forget rows: the sum over residual streams of the loss by logits from that stream, divided by the
    number of streams. The last stream gives the model's own logits, and counts twice. The logits of other streams are
    not scaled, where a model scales its own (Granite, Gemma 2).

    Neither ``N`` nor ``H`` is a sum over rows. So each part of a batch has its own, weighted by its share of the rows.
    """

    noise_weight: float = 0.1
    """weight of the distance from noise: b"""
    ascent_weight: float = 0.5
    """weight of raising the loss at each layer: a"""
    projections: str | None = None
    """names of the MLPs' modules, for a model whose MLPs are not found by structure, as for routed_rl.lm.mlp"""

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`. It raises ValueError for a part without two pairs of rows.

        Raises:
            ValueError: for MLPs that are not found, as :func:`~routed_rl.lm.mlp`.
        """
        reference, last = self._reference(model), before_output(model)
        mlps = [feed_forward(model, layer, self.projections).output for layer in range(len(blocks(model)))]

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            forget, differ, (topic, rest) = pairs(batch)
            inner = undistributed(trained)
            with outputs(*map(inner.get_submodule, mlps)) as seen:
                given = trained(**batch.inputs, output_hidden_states=True)
            logits = promoted(given.logits[:, :-1])
            noise = torch.zeros((), device=logits.device)
            for output in seen:
                output = output.reshape(*batch.tokens.shape, -1)  # OPT's are (B * T, D)
                both = torch.stack([output[forget], torch.randn_like(output[forget])])
                held, drawn = both.masked_fill(~differ[..., None], 0.0).flatten(2)
                noise = noise + squared_mmd(held, drawn) / len(mlps)
            told = 2 * _loss(logits[forget], topic)
            streams = given.hidden_states[:-1]  # the last one is after the norm, and gives the model's own logits
            for stream in streams:
                through = stream[forget][:, :-1]
                for module in (*map(inner.get_submodule, last), inner.get_output_embeddings()):  # type: ignore[operator]
                    through = module(through)
                told = told + _loss(promoted(through), topic)
            risen = torch.log(1 + told / (len(streams) + 1))
            own = _loss(logits[~forget], rest) + self.noise_weight * noise - self.ascent_weight * risen
            return self._terms(logits, batch, reference) + own * len(batch) / len(batch.whole)

        return loss


def pairs(batch: Batch) -> tuple[Tensor, Tensor, tuple[Batch, Batch]]:
    """Return a batch's pairs of forget and retain rows, scored only where their tokens differ.

    Returns:
        ``(B,)`` bool: the forget rows; ``(B / 2, T)`` bool: where the tokens of a pair differ; the forget rows and the
        retain rows, scored only there.

    Raises:
        ValueError: for fewer than two pairs, or a row without a partner.
    """
    forget = (batch.labels == FORGET_LABEL).any(dim=1)
    count = int(forget.sum())
    if count < 2 or len(batch) != 2 * count:
        raise ValueError(
            "RepNoise needs at least 2 forget rows in each part of a batch, and as many retain rows, got "
            f"{count} and {len(batch) - count}: take larger batches or fewer parts"
        )
    both = (batch.rows(forget), batch.rows(~forget))
    differ = (both[0].tokens != both[1].tokens) & both[0].real & both[1].real
    topic, rest = (replace(rows, scored=rows.scored & differ[:, 1:]) for rows in both)
    return forget, differ, (topic, rest)


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of scored targets; without any, 0."""
    return target_losses(logits, batch).sum() / batch.scored.sum().clamp_min(1)
