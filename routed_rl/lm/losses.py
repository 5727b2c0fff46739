"""Next-token losses, as sums: so neither gradient accumulation nor devices change what a loss is divided by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.lm.batches import WINDOW, Batch, WholeDocuments
from routed_rl.lm.models import positions

LOSSES_AT_ONCE = 512
"""Tokens whose losses are computed at a time where no gradients are needed."""


def target_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return ``(B, T - 1, V)``: the model's logits for every target, in single precision or better."""
    return promoted(model(**batch.inputs).logits[:, :-1])


def promoted(tensor: Tensor) -> Tensor:
    """Return a tensor in single precision, or in its own precision if that is better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def target_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Return ``(B, T - 1)``: the cross-entropy of every target in nats, 0 where the target is not scored.

    Args:
        logits: ``(B, T - 1, V)``.
        batch: the batch with the targets.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return losses.view(batch.targets.shape).masked_fill(~batch.scored, 0.0)  # × 0 would keep an infinite loss


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return ``(B, T - 1)``: the ``target_losses`` of the model's logits.

    Without gradients they are computed for a few rows at a time. The numbers are the same. All rows at once would need
    two more tensors as large as the logits.
    """
    if torch.is_grad_enabled():
        return target_losses(target_logits(model, batch), batch)
    logits, rows = model(**batch.inputs).logits, max(1, LOSSES_AT_ONCE // batch.tokens.shape[1])
    return torch.cat(
        [
            target_losses(promoted(logits[start : start + rows, :-1]), batch.rows(slice(start, start + rows)))
            for start in range(0, max(len(batch), 1), rows)  # also for a part without rows
        ]
    )


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the sum of :func:`token_losses`, the usual training loss of language models."""
    return token_losses(model, batch).sum()


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy by target token: the sum ``total`` in nats and the number ``count`` of targets, ``(V,)`` each.

    >>> TokenLoss(np.array([2.0, 3.0, 0.0]), np.array([1, 2, 0])).mean()
    1.6666666666666667
    """

    total: np.ndarray
    count: np.ndarray

    def mean(self, tokens: np.ndarray | None = None) -> float:
        """Return nats per target, over some tokens (``(V,)`` bool) or all. NaN if there are no targets."""
        chosen = np.ones(len(self.total), dtype=bool) if tokens is None else tokens
        count = self.count[chosen].sum()
        return float(self.total[chosen].sum() / count) if count else float("nan")


@contextmanager
def measured(model: nn.Module, documents: WholeDocuments) -> Iterator[Iterator[tuple[Batch, np.ndarray]]]:
    """Give the documents' batches on the model's device, which is in evaluation mode and without gradients meanwhile.

    Each comes with ``(B,)``: the number of each row's document. Documents are cut where the model has too few
    positions, or after :data:`~routed_rl.lm.batches.WINDOW` tokens.
    """
    training, device = model.training, next(model.parameters()).device
    window = min(WINDOW, positions(model) or WINDOW)
    model.eval()
    try:
        with torch.no_grad():
            yield ((batch.to(device), numbers) for batch, numbers in documents.batches(window))
    finally:
        model.train(training)


def evaluate(
    model: nn.Module, documents: WholeDocuments, around: Callable[[Batch], Any] = lambda batch: nullcontext()
) -> TokenLoss:
    """Return the loss on documents, by target token.

    Args:
        around: gives a context for each batch, in which the model runs on it. ``router(...)`` is one, for a model that
            computes differently while it is routed.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    total, count = torch.zeros(vocabulary, dtype=torch.float64), torch.zeros(vocabulary, dtype=torch.int64)
    with measured(model, documents) as batches:
        for batch, _ in batches:
            with around(batch):
                losses = token_losses(model, batch)
            targets, scored = batch.targets.flatten().cpu(), batch.scored.flatten().cpu()
            total.index_add_(0, targets, losses.flatten().cpu().double())
            count.index_add_(0, targets, scored.long())
    return TokenLoss(total.numpy(), count.numpy())


def document_losses(model: nn.Module, documents: WholeDocuments) -> np.ndarray:
    """Return ``(D,)``: nats per target of each document of the corpus. NaN for documents that are not measured."""
    total, count = (np.zeros(len(documents.corpus.validation)) for _ in range(2))
    with measured(model, documents) as batches:
        for batch, numbers in batches:
            np.add.at(total, numbers, token_losses(model, batch).double().sum(dim=1).cpu().numpy())
            np.add.at(count, numbers, batch.scored.sum(dim=1).cpu().numpy())
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
