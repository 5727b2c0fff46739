"""Circuit breakers by representation rerouting (Zou et al. 2024): turn hidden states on the forget set away.

``B`` rows, ``T`` tokens a row, ``D`` residual dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import promoted
from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.lm.processes import undistributed
from routed_rl.lm.streams import outputs
from routed_rl.lm.structure import blocks, stream_width
from routed_rl.lm.suppressors.depths import blocks_at
from routed_rl.lm.suppressors.suppressor import Reference, Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective

USUAL = (Fraction(1, 3), Fraction(2, 3))
TURN = 0.1
"""Length of the random vector that is added to an original state of length 1."""


def rerouting(stream: Tensor, before: Tensor, direction: Tensor) -> Tensor:
    """Return ``relu(cos(h, h_before + t |h_before| u))``, over the last dimension.

    At ``h = h_before`` the cosine with ``h_before`` alone has its maximum, so its gradient there is 0. The small turn
    by ``t = 0.1`` towards ``u`` gives the first step a direction. It is not in the paper.

    Args:
        stream: ``(…, D)``, of the model in training: h.
        before: ``(…, D)``, of the original model.
        direction: ``(D,)``, of length 1: u.
    """
    turned = before + TURN * torch.linalg.vector_norm(before, dim=-1, keepdim=True) * direction
    return F.cosine_similarity(stream, turned, dim=-1).relu()


def relative_distance(stream: Tensor, before: Tensor) -> Tensor:
    """Return ``|h - h_before| / |h_before|``, over the last dimension."""
    moved, length = (torch.linalg.vector_norm(of, dim=-1) for of in (stream - before, before))
    return moved / length.clamp_min(torch.finfo(length.dtype).tiny)


@dataclass(frozen=True)
class CircuitBreaker(Suppressor):
    """``rerouting`` of forget states plus ``a`` times ``relative_distance`` of retain states, as means over streams.

    States are those of residual streams, at the positions that predict targets. The blocks up to the deepest stream
    learn, and no other weight. The paper's distance is not divided by ``|h_before|``. Without this division, ``a``
    would have to fit the length of a model's states.

    In the paper the weight of the first term falls during training and that of the second one rises:
    ``1 - t / 2`` and ``t / 2``, with ``t`` from 0 to 1. Here both weights are constant, because a loss does not know
    the step. The means of the paper's weights have the ratio ``a = 1/3``.
    """

    retain_weight: float = 1.0
    """weight of holding retain states in place: a"""
    depths: str | None = None
    """numbers of blocks before the residual streams that are compared, such as 10,20; None: a third and two thirds of
    the model's blocks"""

    recipe = brief(steps=100, learning_rate=1e-3)

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`. The original model is run too."""
        return 1 + FORWARD_PASS

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`. This freezes the weights that do not learn.

        Raises:
            UserError: for depths that the model does not have.
        """
        names, every = blocks_at(model, self.depths, USUAL), blocks(model)
        reference = Reference(model)
        direction = F.normalize(torch.randn(stream_width(model), generator=torch.Generator().manual_seed(seed)), dim=0)
        model.requires_grad_(False)
        for name in every[: every.index(names[-1]) + 1]:
            model.get_submodule(name).requires_grad_(True)

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            with outputs(*map(undistributed(trained).get_submodule, names)) as seen:
                trained(**batch.inputs)
            total = torch.zeros((), device=batch.tokens.device)
            for stream, before in zip(seen[:], reference.outputs(names, batch), strict=True):
                now, then = promoted(stream[:, :-1]), promoted(before[:, :-1])
                turned = mean(rerouting(now, then, direction.to(now)), forget_targets, batch)
                held = mean(relative_distance(now, then), retain_targets, batch)
                total = total + (turned + self.retain_weight * held) / len(names)
            return total

        return loss
