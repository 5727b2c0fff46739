"""Batches of packed tokens: documents one after the other, cut into rows, without padding.

``B`` rows, ``T`` tokens a row, ``D`` documents. A batch depends only on the seed and the step.
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
    """Rows of tokens. The target at each position is the next token, so there are ``(B, T - 1)`` targets.

    Attributes:
        tokens: ``(B, T)`` int64.
        labels: ``(B, T)`` int64: 0 where the token has the label "forget", else -1.
        scored: ``(B, T - 1)`` bool: the targets that count in a loss. A document's first token does not count.
        of: the batch that this one is a part of, on the device where it was cut. None: this is a whole batch.
    """

    tokens: Tensor
    labels: Tensor
    scored: Tensor
    of: Batch | None = field(default=None, repr=False)

    @property
    def whole(self) -> Batch:
        """The batch that this one is a part of, or the batch itself."""
        return self if self.of is None else self.of

    @property
    def targets(self) -> Tensor:
        """``(B, T - 1)``: the next token at each position."""
        return self.tokens[:, 1:]

    def at_positions(self, of_targets: Tensor, rest: float) -> Tensor:
        """Return ``(B, T)``: each target's value at the position that predicts it, and ``rest`` at the last one."""
        return torch.nn.functional.pad(of_targets, (0, 1), value=rest)

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: str | torch.device) -> Batch:
        """Return the batch on a device. The whole batch that it is a part of stays where it is."""
        return Batch(self.tokens.to(device), self.labels.to(device), self.scored.to(device), self.of)

    def rows(self, chosen: slice) -> Batch:
        """Return some of the rows, as a part of the whole batch."""
        return Batch(self.tokens[chosen], self.labels[chosen], self.scored[chosen], self.whole)


class Batches:
    """Documents in a new order each epoch, packed into rows and batches.

    Each row begins with the last token of the row before it. The last row ends with the first document's first token.
    So every token is a target once in an epoch, except the tokens that do not fill a batch. Documents of ``T - 1``
    tokens have a row each.

    Args:
        corpus: the documents.
        documents: the numbers of the documents to use.
        length: tokens in a row, ``T``.
        batch_size: rows in a batch. None: all rows of an epoch.
        seed: fixes the order of documents. None: in the order given, in every epoch.
        labelled: ``(D,)`` bool, from :meth:`Corpus.labelled`. None: no document is labelled.

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
            raise ValueError(f"a batch needs rows of at least 2 tokens, got {batch_size} rows of {length} tokens")
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
        """Return the batch of a step, 0 or later."""
        documents, within = self._layout(step)
        places = self.corpus.starts[documents] + within
        labels = np.full(places.shape, NO_LABEL, dtype=np.int64)
        if self._labelled is not None:
            # A document that was labelled by mistake has no forget tokens, so all its tokens get the label.
            marked = self.corpus.forget[places] | ~self.corpus.to_forget[documents]
            labels[self._labelled[documents] & marked] = FORGET_LABEL
        tokens = self.corpus.tokens[places].astype(np.int64)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(within[:, 1:] > 0))

    def documents_at(self, step: int) -> Tensor:
        """Return ``(B, T)`` int64: the number of each token's document in the batch of a step."""
        return torch.from_numpy(self._layout(step)[0].astype(np.int64))

    def _layout(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(B, T)`` each: the document of each token of a batch, and the token's place in that document."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, ends = self._order(epoch)
        first_row = place * self.batch_size
        row_starts = np.arange(first_row, first_row + self.batch_size) * (self.length - 1)
        # The first document follows the last one. Its first token is never scored.
        positions = (row_starts[:, None] + np.arange(self.length)) % self._total
        nth = np.searchsorted(ends, positions, side="right")
        within = positions - (ends[nth] - self._lengths[order[nth]])
        return self.documents[order[nth]], within

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """Yield all batches of an epoch."""
        for step in range(self.steps_per_epoch):
            yield self.batch(number * self.steps_per_epoch + step)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of an epoch's documents, and where each one ends in the stream."""
        if self._epoch is None or self._epoch[0] != epoch:
            if self.seed is None:
                order = np.arange(len(self.documents))
            else:
                order = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(len(self.documents))
            self._epoch = (epoch, order, np.cumsum(self._lengths[order]))
        return self._epoch[1:]
