"""Batches that have rows of the forget set and rows of the retain set."""

from __future__ import annotations

import torch

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch, Batches


class ForgetAndRetain:
    """Batches of forget rows, which are labelled, and retain rows, which are not.

    Both kinds alternate in a batch, so each part of a batch has both.

    Raises:
        ValueError: if forget and retain rows have different lengths.
    """

    def __init__(self, forget: Batches, retain: Batches) -> None:
        if forget.length != retain.length:
            raise ValueError(
                f"forget and retain rows must have the same length, got {forget.length} and {retain.length} tokens"
            )
        self._forget, self._retain = forget, retain

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, 0 or later."""
        forget, retain = self._forget.batch(step), self._retain.batch(step)
        labels = torch.cat([torch.full_like(forget.labels, FORGET_LABEL), torch.full_like(retain.labels, NO_LABEL)])
        places = torch.cat([(torch.arange(len(rows)) + 0.5) / len(rows) for rows in (forget, retain)])
        turns = places.argsort(stable=True)
        tokens, scored = torch.cat([forget.tokens, retain.tokens]), torch.cat([forget.scored, retain.scored])
        return Batch(tokens[turns], labels[turns], scored[turns])
