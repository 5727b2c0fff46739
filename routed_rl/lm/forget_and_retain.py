"""Batches that have rows of the forget set and rows of the retain set."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, PADDING, Batch, Batches


class ForgetAndRetain:
    """Batches of forget rows, with the labels that they have, and retain rows, without labels.

    Both kinds alternate in a batch, so each part of a batch has both.

    Raises:
        ValueError: in :meth:`batch`, if the forget rows have no label.

    Attributes:
        tokens_per_step: mean number of tokens in a batch, without padding.
    """

    def __init__(self, forget: Batches, retain: Batches) -> None:
        self._forget, self._retain = forget, retain
        self.tokens_per_step = forget.tokens_per_step + retain.tokens_per_step

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, 0 or later."""
        parts = self._forget.batch(step), self._retain.batch(step)
        length = max(part.tokens.shape[1] for part in parts)
        turns = torch.cat([(torch.arange(len(part)) + 0.5) / len(part) for part in parts]).argsort(stable=True)

        def joined(rows: list[torch.Tensor], empty: int, length: int = length) -> torch.Tensor:
            return torch.cat([pad(row, (0, length - row.shape[1]), value=empty) for row in rows])[turns]

        if not (parts[0].labels == FORGET_LABEL).any():
            raise ValueError("forget rows need labels: make their Batches with labelled=corpus.labelled(1.0)")
        labels = [parts[0].labels, torch.full_like(parts[1].labels, NO_LABEL)]
        return Batch(
            joined([part.tokens for part in parts], 0),
            joined(labels, NO_LABEL),
            joined([part.scored for part in parts], False, length - 1),
            joined([part.examples for part in parts], PADDING),
            packed=any(part.packed for part in parts),
        )
