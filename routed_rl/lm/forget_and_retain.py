"""Batches that have rows of the forget set, their alternative rows if any, and rows of the retain set."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from routed_rl.lm.alternatives import Alternatives
from routed_rl.lm.batches import ALTERNATIVE_LABEL, FORGET_LABEL, NO_LABEL, PADDING, Batch, Batches


class ForgetAndRetain:
    """Batches of forget rows, with the labels that they have, and retain rows, without labels.

    Both kinds alternate in a batch, so each part of a batch has both. With alternatives, each forget row is a whole
    document, and the same question with another answer is the next row.

    Args:
        forget, retain: rows of each set. With alternatives, made with ``pack=False``.
        alternatives: of all forget documents. None: batches have none.

    Raises:
        ValueError: in :meth:`batch`, if the forget rows have no label.
        UserError: if the forget documents and their alternatives do not fit in rows.

    Attributes:
        tokens_per_step: mean number of tokens in a batch, without padding.
    """

    def __init__(self, forget: Batches, retain: Batches, alternatives: Alternatives | None = None) -> None:
        self._forget, self._retain, self._alternatives = forget, retain, alternatives
        self.tokens_per_step = forget.tokens_per_step + retain.tokens_per_step
        if alternatives is not None:
            alternatives.check(forget.corpus, forget.documents, forget.length)
            self.tokens_per_step += forget.batch_size * alternatives.tokens_per_row

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, 0 or later."""
        parts, others = [self._forget.batch(step), self._retain.batch(step)], [NO_LABEL]
        if self._alternatives is not None:  # each has the turn of its forget row, and comes after it
            parts.insert(1, self._alternatives.batch(self._forget.documents_of(step)))
            others.insert(0, ALTERNATIVE_LABEL)
        length = max(part.tokens.shape[1] for part in parts)
        turns = torch.cat([(torch.arange(len(part)) + 0.5) / len(part) for part in parts]).argsort(stable=True)

        def joined(rows: list[torch.Tensor], empty: int, length: int = length) -> torch.Tensor:
            return torch.cat([pad(row, (0, length - row.shape[1]), value=empty) for row in rows])[turns]

        if not (parts[0].labels == FORGET_LABEL).any():
            raise ValueError("forget rows need labels: make their Batches with labelled=corpus.labelled(1.0)")
        given = zip(parts[1:], others, strict=True)
        labels = [parts[0].labels, *(torch.full_like(part.labels, label) for part, label in given)]
        return Batch(
            joined([part.tokens for part in parts], 0),
            joined(labels, NO_LABEL),
            joined([part.scored for part in parts], False, length - 1),
            joined([part.examples for part in parts], PADDING),
            packed=any(part.packed for part in parts),
        )
