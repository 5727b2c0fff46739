"""Batches of packed tokens: documents one after the other, cut in rows, none of it padding.

``B`` rows, ``T`` tokens a row, ``D`` documents. A batch is a function of seed and step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from routed_rl.lm.corpora import Corpus
from routed_rl.runs import derive_seed

FORGET_LABEL, NO_LABEL = 0, -1


@dataclass(frozen=True)
class Batch:
    """Rows of tokens; what is predicted at a position is the next token, so targets are ``(B, T - 1)``.

    Attributes:
        tokens: ``(B, T)`` int64.
        labels: ``(B, T)`` int64: 0 where somebody has labelled the token as to be forgotten, else -1.
        scored: ``(B, T - 1)`` bool: the targets that count: not a document's first token.
        of: the batch that this is a part of, on the device where it was cut; None: this is no part.
    """

    tokens: Tensor
    labels: Tensor
    scored: Tensor
    of: Batch | None = field(default=None, repr=False)

    @property
    def whole(self) -> Batch:
        """The batch that this is a part of, or itself."""
        return self if self.of is None else self.of

    @property
    def targets(self) -> Tensor:
        """``(B, T - 1)``: what is to be predicted."""
        return self.tokens[:, 1:]

    def at_positions(self, of_targets: Tensor, rest: float) -> Tensor:
        """``(B, T)`` from ``(B, T - 1)``: a value of each target where it is predicted, and ``rest`` at the end."""
        return torch.nn.functional.pad(of_targets, (0, 1), value=rest)

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: str | torch.device) -> Batch:
        """The batch on a device; what it is a part of stays where it is."""
        return Batch(self.tokens.to(device), self.labels.to(device), self.scored.to(device), self.of)

    def rows(self, chosen: slice) -> Batch:
        """Some of the rows: a part of the batch, or of what it is a part of."""
        return Batch(self.tokens[chosen], self.labels[chosen], self.scored[chosen], self.whole)


class Batches:
    """Documents in a new order each epoch, packed into rows and batches. A row begins with the token that the row
    before ends with, and the last ends with the first document's first token: an epoch has every token as a target
    once, but for those that do not fill a batch. Documents of ``T - 1`` tokens have a row each.

    Args:
        corpus: the documents.
        documents: the numbers of those that are used.
        length: tokens a row, ``T``.
        batch_size: rows a batch; None: all of an epoch's.
        seed: fixes the order; None: the documents' own, in every epoch.
        labelled: ``(D,)`` bool, from :meth:`Corpus.labelled`; None: no document is labelled.

    Raises:
        ValueError: if the documents do not fill one batch, or rows have no target.
    """

    def __init__(
        self,
        corpus: Corpus,
        documents: np.ndarray,
        length: int,
        batch_size: int | None = None,
        seed: int | None = None,
        labelled: np.ndarray | None = None,
    ) -> None:
        if length < 2 or (batch_size is not None and batch_size < 1):
            raise ValueError(f"a batch needs rows, of 2 tokens or more, got {batch_size} rows of {length} tokens")
        self.corpus, self.documents, self.length, self.seed = corpus, documents, length, seed
        self._lengths = np.diff(corpus.starts)[documents]
        self._total = int(self._lengths.sum())
        rows = self._total // (length - 1)
        self.batch_size = max(rows, 1) if batch_size is None else batch_size
        if rows < self.batch_size:
            raise ValueError(
                f"{len(documents)} documents fill {rows} rows of {length} tokens, and a batch needs {self.batch_size}: "
                "take more documents, shorter rows or smaller batches"
            )
        self.steps_per_epoch = rows // self.batch_size
        self._labelled = labelled
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step, 0 or later."""
        documents, within = self._layout(step)
        places = self.corpus.starts[documents] + within
        labels = np.full(places.shape, NO_LABEL, dtype=np.int64)
        if self._labelled is not None:
            # A document that was labelled by mistake has no token to forget: all of it is labelled.
            marked = self.corpus.forget[places] | ~self.corpus.to_forget[documents]
            labels[self._labelled[documents] & marked] = FORGET_LABEL
        tokens = self.corpus.tokens[places].astype(np.int64)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(within[:, 1:] > 0))

    def documents_at(self, step: int) -> Tensor:
        """``(B, T)`` int64: the number of each token's document in a step's batch."""
        return torch.from_numpy(self._layout(step)[0].astype(np.int64))

    def _layout(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """``(B, T)`` each: the document of each token of a batch, and which token of it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, ends = self._order(epoch)
        first_row = place * self.batch_size
        row_starts = np.arange(first_row, first_row + self.batch_size) * (self.length - 1)
        # What follows the last document is the first again, whose first token is never scored.
        positions = (row_starts[:, None] + np.arange(self.length)) % self._total
        nth = np.searchsorted(ends, positions, side="right")
        within = positions - (ends[nth] - self._lengths[order[nth]])
        return self.documents[order[nth]], within

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """All batches of an epoch."""
        for step in range(self.steps_per_epoch):
            yield self.batch(number * self.steps_per_epoch + step)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of an epoch's documents, and where each ends in the stream."""
        if self._epoch is None or self._epoch[0] != epoch:
            if self.seed is None:
                order = np.arange(len(self.documents))
            else:
                order = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(len(self.documents))
            self._epoch = (epoch, order, np.cumsum(self._lengths[order]))
        return self._epoch[1:]
