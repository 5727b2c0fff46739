"""IDK with DPO (Maini et al. 2024, TOFU; Rafailov et al. 2023): prefer "I don't know" to the original answer.

``B`` rows, ``T`` tokens a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.lm.alternatives import DONT_KNOW
from routed_rl.lm.batches import ALTERNATIVE_LABEL, FORGET_LABEL, Batch
from routed_rl.lm.losses import token_losses
from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.lm.suppressors.suppressor import (
    ReferenceLosses,
    Suppressor,
    alternative_targets,
    brief,
    forget_targets,
    mean,
    retain_targets,
)
from routed_rl.lm.training import Objective


def preference(forget: Tensor, alternative: Tensor, beta: float) -> Tensor:
    """Return ``- 2/b * log sigmoid(b * (forget - alternative))``.

    Both arguments are how far an answer's summed loss has risen since before training. The value falls as the
    alternative answer becomes more likely, or the original one less likely.
    """
    return -2 / beta * F.logsigmoid(beta * (forget - alternative))


def pair_targets(batch: Batch) -> Tensor:
    """Return ``(B, T - 1)`` bool: the targets of forget rows and of their alternatives."""
    return forget_targets(batch) | alternative_targets(batch)


def pairs(batch: Batch) -> Tensor:
    """Return ``(B,)`` bool: the forget rows. The row after each is its alternative.

    Raises:
        ValueError: for a row without its partner, as where a batch is cut between them.
    """
    forget, alternative = ((batch.labels == label).any(dim=1) for label in (FORGET_LABEL, ALTERNATIVE_LABEL))
    apart = F.pad(forget, (1, 0)) != F.pad(alternative, (0, 1))
    if bool(apart.any()):
        raise ValueError(
            "each forget row needs its alternative as the next row in the same part of a batch: the number of forget "
            "rows must be divisible by processes and parts (accumulate)"
        )
    return forget


@dataclass(frozen=True)
class IdkDpo(Suppressor):
    """``preference`` for each pair of a forget row and its alternative, plus ``a * CE_retain``.

    Of the original model it needs only a number for each row of a pair, as NPO.
    """

    retain_weight: float = 1.0
    """weight of the retain loss: a"""
    beta: float = 0.1
    """how soon a pair counts as far enough apart: b"""

    alternatives = DONT_KNOW
    recipe = brief(steps=60, learning_rate=3e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta:
            raise ValueError(f"beta of {type(self).__name__} must be more than 0, got 0")

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`. The original model is run too, unless its losses are known."""
        return 1 + FORWARD_PASS

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`. It raises ValueError for a part that cuts a pair."""
        reference = ReferenceLosses(model, pair_targets)

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            pairs(batch)
            losses = token_losses(trained, batch)
            now = losses.masked_fill(~pair_targets(batch), 0.0).sum(dim=1)
            risen = now - reference(batch).sum(dim=1)
            preferred = preference(risen, risen.roll(-1), self.beta)  # the last row begins no pair
            return mean(preferred, pairs, batch) + self.retain_weight * mean(losses, retain_targets, batch)

        return loss
