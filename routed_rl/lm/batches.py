"""Documents in rows of tokens: packed for training, one a row for measurement.

A document never sees another one: in a packed row each document has its own positions, and attends to itself alone. So
losses and gradients do not depend on which documents share a row.

``B`` rows, ``T`` tokens in the longest row, ``D`` documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routed_rl.errors import UserError
from routed_rl.lm.corpora import Corpus
from routed_rl.runs import derive_seed
from routed_rl.wording import written

ALTERNATIVE_LABEL, FORGET_LABEL, NO_LABEL = 1, 0, -1
"""Labels of a token. ``FORGET_LABEL``: it is in the forget set. ``ALTERNATIVE_LABEL``: it is in a forget question with
another answer. ``NO_LABEL``: nobody has labelled it."""
PADDING = -1
"""Value of :attr:`Batch.examples` at padding."""
TOKENS_AT_ONCE = 4096
"""Tokens computed at a time where there is no other limit. The logits of a large vocabulary need the most memory."""
WINDOW = 2048
"""Tokens of the longest text that is measured as a whole. Longer documents are measured in windows of this length."""


@dataclass(frozen=True)
class Batch:
    """Rows of tokens. The target at each position is the next token, so there are ``(B, T - 1)`` targets.

    An *example* is a document, or a part of a document that is longer than a row.

    Attributes:
        tokens: ``(B, T)`` int64. A row that is shorter than ``T`` ends with padding, which is token 0.
        labels: ``(B, T)`` int64: 0 where the token has the label "forget", 1 in alternative rows, else -1.
        scored: ``(B, T - 1)`` bool: the targets that count in a loss. An example's first token does not count.
        examples: ``(B, T)`` int64: the number of each token's example in its row, from 0; -1 at padding. If left out,
            each row is one example without padding.
        packed: whether rows may hold several examples.
        of: the batch that this one is a part of, on the device where it was cut. None: this is a whole batch.
    """

    tokens: Tensor
    labels: Tensor
    scored: Tensor
    examples: Tensor = None  # type: ignore[assignment]
    packed: bool = False
    of: Batch | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.examples is None:
            object.__setattr__(self, "examples", torch.zeros_like(self.tokens))

    @property
    def whole(self) -> Batch:
        """The batch that this one is a part of, or the batch itself."""
        return self if self.of is None else self.of

    @property
    def targets(self) -> Tensor:
        """``(B, T - 1)``: the next token at each position."""
        return self.tokens[:, 1:]

    @property
    def real(self) -> Tensor:
        """``(B, T)`` bool: the tokens that are not padding."""
        return self.examples != PADDING

    @property
    def positions(self) -> Tensor:
        """``(B, T)`` int64: each token's place in its example, from 0. Padding continues the example before it."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        first = torch.nn.functional.pad(self.examples[:, 1:] > self.examples[:, :-1], (1, 0))
        return places - torch.where(first, places, 0).cummax(dim=1).values

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments with which a model of transformers is called.

        Positions that begin again at 0 separate examples: transformers masks attention between them. Padding needs no
        mask, because it comes last and attention is causal.
        """
        given: dict[str, Any] = {"input_ids": self.tokens, "use_cache": False}
        return given | {"position_ids": self.positions} if self.packed else given

    def at_positions(self, of_targets: Tensor, rest: float) -> Tensor:
        """Return ``(B, T)``: each target's value at the position that predicts it, and ``rest`` at the last one."""
        return torch.nn.functional.pad(of_targets, (0, 1), value=rest)

    def by_example(self, of_targets: Tensor) -> Tensor:
        """Return ``(B, T)``: sums of ``(B, T - 1)`` values over each example's targets; 0 after the last example."""
        sums = of_targets.new_zeros(self.tokens.shape)
        return sums.scatter_add(1, self.examples[:, 1:].clamp_min(0), of_targets)

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: str | torch.device) -> Batch:
        """Return the batch on a device. The whole batch that it is a part of stays where it is."""
        return self._with(lambda tensor: tensor.to(device), self.of)

    def rows(self, chosen: slice | Tensor) -> Batch:
        """Return some of the rows, as a part of the whole batch."""
        return self._with(lambda tensor: tensor[chosen], self.whole)

    def _with(self, change: Callable[[Tensor], Tensor], of: Batch | None) -> Batch:
        tensors = {name: change(getattr(self, name)) for name in ("tokens", "labels", "scored", "examples")}
        return replace(self, **tensors, of=of)  # type: ignore[arg-type]


def in_parts(whole: Batch) -> Iterator[Batch]:
    """Yield a batch in parts of at most ``TOKENS_AT_ONCE`` tokens, but at least one row."""
    rows = max(1, TOKENS_AT_ONCE // whole.tokens.shape[1])
    for start in range(0, len(whole), rows):
        yield whole.rows(slice(start, start + rows))


def row_keys(batch: Batch, of_targets: Tensor | None = None) -> list[bytes]:
    """Return a key of 16 bytes for each row: of its tokens and their examples, without padding.

    Args:
        of_targets: ``(B, T - 1)`` numbers or marks of targets that the key should also tell apart.
    """
    arrays = [batch.tokens, batch.examples]
    if of_targets is not None:
        arrays.append(torch.nn.functional.pad(of_targets.to(torch.int64), (1, 0)))
    rows = torch.stack(arrays, dim=1).cpu().numpy()
    return [hashlib.blake2b(row[:, row[1] != PADDING].tobytes(), digest_size=16).digest() for row in rows]


class Batches:
    """Rows of documents for training, in a new order each epoch. A batch depends only on the seed and the step.

    A document that is longer than a row is cut into several examples. Each begins with the last token of the one before
    it. So every scored token is a target once in an epoch, except those in the last rows that do not fill a batch.

    Args:
        corpus: the documents.
        documents: the numbers of the documents to use.
        length: most tokens in a row.
        batch_size: rows in a batch.
        seed: fixes the order of rows. None: in one order, in every epoch.
        labelled: ``(D,)`` bool, from :meth:`Corpus.labelled`. None: no document is labelled.
        pack: whether short documents share rows (best-fit decreasing). False: each example has a row of its own. Not
            every model can keep packed documents apart: see :func:`~routed_rl.lm.keeps_apart`.
        option: the user's name of ``batch_size``, for errors.

    Raises:
        ValueError: if the documents do not fill one batch, or rows have no target.

    Attributes:
        tokens_per_step: mean number of tokens in a batch, without padding.
    """

    def __init__(
        self,
        corpus: Corpus,
        documents: np.ndarray,
        length: int,
        batch_size: int,
        seed: int | None = None,
        labelled: np.ndarray | None = None,
        pack: bool = True,
        option: str = "--batch-size",
    ) -> None:
        if length < 2 or batch_size < 1:
            raise ValueError(f"a batch needs rows of at least 2 tokens, got {batch_size} rows of {length} tokens")
        self.corpus, self.documents, self.length = corpus, documents, length
        self.batch_size, self.seed = batch_size, seed
        self._rows = Rows(corpus, documents, length, labelled, pack)
        if len(self._rows) < batch_size:
            raise UserError(
                f"{len(documents)} documents fill {len(self._rows)} rows of {length} tokens, and a batch needs "
                f"{batch_size}: take more documents, shorter rows (--length), or {written(option, len(self._rows))} or "
                "less"
            )
        self.steps_per_epoch = len(self._rows) // batch_size
        self.tokens_per_step = batch_size * self._rows.tokens / len(self._rows)
        self._epoch: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, 0 or later."""
        return self._rows.batch(self._of_step(step))

    def documents_of(self, step: int) -> np.ndarray:
        """Return ``(B,)``: the document of each row of a step's batch; in a packed row, that of the first example."""
        return self._rows.documents[self._of_step(step)]

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """Yield all batches of an epoch."""
        for step in range(self.steps_per_epoch):
            yield self.batch(number * self.steps_per_epoch + step)

    def _of_step(self, step: int) -> np.ndarray:
        """Return the rows of a step's batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch's rows."""
        if self.seed is None:
            return np.arange(len(self._rows))
        if self._epoch is None or self._epoch[0] != epoch:
            chance = np.random.default_rng(derive_seed(self.seed, "epoch", epoch))
            self._epoch = (epoch, chance.permutation(len(self._rows)))
        return self._epoch[1]


class WholeDocuments:
    """Documents for measurement, one a row, so that no other text changes a document's loss.

    Args:
        corpus, documents, labelled: as for :class:`Batches`.
    """

    def __init__(self, corpus: Corpus, documents: np.ndarray, labelled: np.ndarray | None = None) -> None:
        self.corpus, self.documents, self.labelled = corpus, documents, labelled
        self._rows: dict[int, Rows] = {}

    def batches(self, window: int = WINDOW) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yield batches of at most ``TOKENS_AT_ONCE`` tokens, and ``(B,)``: the number of each row's document.

        Args:
            window: most tokens in a row. Longer documents have several rows, as in :class:`Batches`.
        """
        if window not in self._rows:
            self._rows[window] = Rows(self.corpus, self.documents, window, self.labelled, pack=False)
        rows = self._rows[window]
        begin = 0
        while begin < len(rows):  # rows are sorted, the longest first
            end = begin + max(1, TOKENS_AT_ONCE // int(rows.lengths[begin]))
            yield rows.batch(np.arange(begin, min(end, len(rows)))), rows.documents[begin:end]
            begin = end


class Rows:
    """Documents cut into examples of at most ``length`` tokens, in rows. Examples without a target are left out.

    The arguments are those of :class:`Batches`. If documents are not packed, longer rows come first.

    Attributes:
        documents, lengths: ``(R,)`` each: the document of each row's first example, and the tokens in each row.
        tokens: how many tokens there are in all rows.
    """

    def __init__(
        self, corpus: Corpus, documents: np.ndarray, length: int, labelled: np.ndarray | None, pack: bool
    ) -> None:
        self._corpus, self._labelled, self._pack = corpus, labelled, pack
        sizes = np.diff(corpus.starts)[documents]
        parts = np.maximum(-(-(sizes - 1) // (length - 1)), 1)
        document = np.repeat(documents, parts)
        nth = np.arange(len(document)) - np.repeat(np.cumsum(parts) - parts, parts)
        begin = corpus.starts[document] + nth * (length - 1)
        size = np.minimum(corpus.starts[document + 1] - begin, length)
        useful = corpus.has_target(begin, begin + size)
        document, begin, size = document[useful], begin[useful], size[useful]
        row = _best_fit(size, length) if pack else _longest_first(size)
        order = np.lexsort((-size, row))
        self._document, self._begin, self._size, row = document[order], begin[order], size[order], row[order]
        self._count = np.bincount(row)
        self._first = np.cumsum(self._count) - self._count
        ends = np.cumsum(self._size)
        self._column = ends - self._size - np.repeat((ends - self._size)[self._first], self._count)
        self.lengths = np.add.reduceat(self._size, self._first) if len(row) else size
        self.documents, self.tokens = self._document[self._first], int(size.sum())

    def __len__(self) -> int:
        return len(self._count)

    def batch(self, rows: np.ndarray) -> Batch:
        """Return some of the rows."""
        count = self._count[rows]
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        example = np.repeat(self._first[rows], count) + nth
        size = self._size[example]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        at = np.repeat(np.repeat(np.arange(len(rows)), count), size), np.repeat(self._column[example], size) + within
        places = np.repeat(self._begin[example], size) + within
        shape = (len(rows), int(self.lengths[rows].max()))
        tokens, labels, scored = np.zeros(shape, np.int64), np.full(shape, NO_LABEL), np.zeros(shape, bool)
        examples = np.full(shape, PADDING)
        tokens[at], examples[at] = self._corpus.tokens[places], np.repeat(nth, size)
        scored[at] = (within > 0) & (True if self._corpus.scored is None else self._corpus.scored[places])
        if self._labelled is not None:
            document = np.repeat(self._document[example], size)
            # A document that was labelled by mistake has no forget tokens, so all its tokens get the label.
            marked = self._corpus.forget[places] | ~self._corpus.to_forget[document]
            labels[at] = np.where(self._labelled[document] & marked, FORGET_LABEL, NO_LABEL)
        arrays = {"tokens": tokens, "labels": labels, "scored": scored[:, 1:].copy(), "examples": examples}
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, packed=self._pack)


def _longest_first(sizes: np.ndarray) -> np.ndarray:
    """Return a row for each example, rows of longer examples first."""
    rows = np.empty(len(sizes), dtype=np.int64)
    rows[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return rows


def _best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """Return a row for each example: best-fit decreasing, which leaves little padding.

    Each example, the longest first, goes into the fullest row that has room for it, or else into a new row.
    """
    rows = np.empty(len(sizes), dtype=np.int64)
    open_rows: list[list[int]] = [[] for _ in range(length)]  # by the room that is left
    rooms, count = 0, 0  # bit n of rooms: there is a row with room for n tokens
    for example in np.argsort(-sizes, kind="stable"):
        size = int(sizes[example])
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row, count = length, count, count + 1
        rows[example] = row
        left = room - size
        if left:
            open_rows[left].append(row)
            rooms |= 1 << left
    return rows
