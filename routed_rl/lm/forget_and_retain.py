"""Where batches come from that have rows to forget and rows to retain."""

from __future__ import annotations

import torch

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch, Batches


class ForgetAndRetain:
    """Batches of rows to forget, which are labelled so, and of rows to retain, which are not: in turns, so that parts
    of a batch have both.

    Raises:
        ValueError: if the rows of both are not as long.
    """

    def __init__(self, forget: Batches, retain: Batches) -> None:
        if forget.length != retain.length:
            raise ValueError(
                f"rows to forget and to retain must be as long, got {forget.length} and {retain.length} tokens"
            )
        self._forget, self._retain = forget, retain

    def batch(self, step: int) -> Batch:
        """The batch of a step, 0 or later."""
        forget, retain = self._forget.batch(step), self._retain.batch(step)
        labels = torch.cat([torch.full_like(forget.labels, FORGET_LABEL), torch.full_like(retain.labels, NO_LABEL)])
        places = torch.cat([(torch.arange(len(rows)) + 0.5) / len(rows) for rows in (forget, retain)])
        turns = places.argsort(stable=True)
        tokens, scored = torch.cat([forget.tokens, retain.tokens]), torch.cat([forget.scored, retain.scored])
        return Batch(tokens[turns], labels[turns], scored[turns])
