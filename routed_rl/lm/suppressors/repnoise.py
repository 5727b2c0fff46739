"""RepNoise (Rosati et al. 2024): what the layers hold of the topic, made noise, so that less is left to learn from.

``B`` rows, ``T`` tokens a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import FORGET_LABEL, Batch
from routed_rl.lm.losses import promoted, target_losses
from routed_rl.lm.models import blocks, final_norm, mlp
from routed_rl.lm.processes import undistributed
from routed_rl.lm.streams import outputs
from routed_rl.lm.suppressors.maxent import MaxEnt
from routed_rl.lm.training import Objective

KERNELS = 5


def squared_mmd(sample: Tensor, other: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of two samples, ``(N, K)`` and ``(M, K)``: the biased estimate, which has
    each vector's kernel with itself, is never negative and 0 for the same vectors. The kernel is a sum of five
    Gaussians, ``exp(-d² / (b * 2^i))``, ``b`` a quarter of the mean ``d²`` between any two vectors, as a constant.

    Raises:
        ValueError: for fewer than two vectors, of which nothing can be said.
    """
    if min(len(sample), len(other)) < 2:
        raise ValueError(f"a discrepancy needs samples of 2 or more, got {len(sample)} and {len(other)}")
    both = promoted(torch.cat([sample, other]))
    # Products of matrices would lose what is small, in half precision above all.
    distances = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()
    width = distances.detach().sum() / (len(both) * (len(both) - 1)) / 4
    width = width.clamp_min(torch.finfo(width.dtype).tiny)
    kernel = torch.stack([torch.exp(-distances / (width * 2**i)) for i in range(KERNELS)]).sum(dim=0)
    n = len(sample)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


@dataclass(frozen=True)
class RepNoise(MaxEnt):
    """MaxEnt, and ``CE_retain + b * N - a * log(1 + H)`` (UNDO, its public code).

    The n-th row to forget is paired with the n-th to retain, and only where their tokens differ anything counts. ``N``
    is the mean over layers of :func:`squared_mmd` between the MLP's outputs for rows to forget, each row a vector, and
    normal noise. ``H`` is the loss of rows to forget, by the logits and by each layer's residual stream in the place of
    the last, over how many streams there are; the last one is the logits' and counts twice.

    Neither is a sum over rows, so a part of a batch has its own, which counts as much as it has rows.
    """

    noise_weight: float = 0.1
    """weight of the distance from noise: b"""
    ascent_weight: float = 0.5
    """weight of raising the loss of each layer: a"""
    projections: str | None = None
    """where the MLPs are in a model of an unknown type, as routed_rl.lm.mlp takes it"""

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """:meth:`Suppressor.loss`; it raises ValueError for a part without two pairs of rows.

        Raises:
            ValueError: as :func:`~routed_rl.lm.mlp` and :func:`~routed_rl.lm.models.final_norm`.
        """
        reference, norm = self._reference(model), final_norm(model)
        mlps = [mlp(model, layer, self.projections).consumer for layer in range(len(blocks(model)))]

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            forget, differ, (topic, rest) = pairs(batch)
            inner = undistributed(trained)
            with outputs(*map(inner.get_submodule, mlps)) as seen:
                given = trained(input_ids=batch.tokens, use_cache=False, output_hidden_states=True)
            logits = promoted(given.logits[:, :-1])
            noise = torch.zeros((), device=logits.device)
            for output in seen:
                both = torch.stack([output[forget], torch.randn_like(output[forget])])
                held, drawn = both.masked_fill(~differ[..., None], 0.0).flatten(2)
                noise = noise + squared_mmd(held, drawn) / len(mlps)
            told = 2 * _loss(logits[forget], topic)
            streams = given.hidden_states[:-1]  # the last has gone through the norm: the logits are made of it
            for stream in streams:
                through = inner.get_submodule(norm)(stream[forget][:, :-1])
                told = told + _loss(promoted(inner.get_output_embeddings()(through)), topic)  # type: ignore[operator]
            risen = torch.log(1 + told / (len(streams) + 1))
            own = _loss(logits[~forget], rest) + self.noise_weight * noise - self.ascent_weight * risen
            return self._terms(logits, batch, reference) + own * len(batch) / len(batch.whole)

        return loss


def pairs(batch: Batch) -> tuple[Tensor, Tensor, tuple[Batch, Batch]]:
    """``(B,)`` bool: the rows to forget; ``(B / 2, T)`` bool: where the tokens of a pair differ; and the rows to forget
    and to retain, scored only there.

    Raises:
        ValueError: for fewer than two pairs, or a row without one.
    """
    forget = (batch.labels == FORGET_LABEL).any(dim=1)
    count = int(forget.sum())
    if count < 2 or len(batch) != 2 * count:
        raise ValueError(
            "RepNoise needs 2 rows to forget or more in each part of a batch, and as many to retain, got "
            f"{count} and {len(batch) - count}: take larger batches or fewer parts"
        )
    differ = batch.tokens[forget] != batch.tokens[~forget]
    topic, rest = (
        Batch(batch.tokens[rows], batch.labels[rows], batch.scored[rows] & differ[:, 1:]) for rows in (forget, ~forget)
    )
    return forget, differ, (topic, rest)


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """The mean cross-entropy of scored targets, 0 if there are none."""
    return target_losses(logits, batch).sum() / batch.scored.sum().clamp_min(1)
