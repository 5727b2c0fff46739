"""Losses of next tokens, as sums and by token."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from routed_rl.lm import batches, losses
from routed_rl.lm.batches import Batch, Batches, WholeDocuments
from routed_rl.lm.losses import TokenLoss, evaluate, next_token_loss, token_losses
from tests.lm.texts import corpus_of

LENGTHS = [7, 3, 1, 6, 12, 5]
VOCABULARY = 8


class Bigram(nn.Module):
    """A model whose logits depend on the last token only, and are twice as large in training."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)
        self.table.weight.data = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, input_ids: Tensor, use_cache: bool, position_ids: Tensor | None = None) -> SimpleNamespace:
        assert not use_cache
        return SimpleNamespace(logits=self.table(input_ids) * (1 + self.training))


def documents() -> WholeDocuments:
    corpus = corpus_of(LENGTHS)
    corpus.tokens[:] %= VOCABULARY - 1  # the last token of the vocabulary does not occur
    return WholeDocuments(corpus, np.arange(len(LENGTHS)))


def all_in_one() -> Batch:
    of = documents()
    return Batches(of.corpus, of.documents, 12, 3, seed=0).batch(0)


def naive(model: Bigram, batch: Batch) -> list[tuple[int, float]]:
    """Return every scored target and its loss."""
    weight = model.table.weight.detach().double().numpy()
    found = []
    for row, scored in zip(batch.tokens.tolist(), batch.scored.tolist(), strict=True):
        for before, target, counts in zip(row, row[1:], scored, strict=False):
            if counts:
                found.append((target, math.log(np.exp(weight[before]).sum()) - weight[before, target]))
    return found


def test_losses_are_those_of_a_loop() -> None:
    model, batch = Bigram().eval(), all_in_one()
    by_target = token_losses(model, batch)
    assert by_target.shape == batch.targets.shape
    assert (by_target[~batch.scored] == 0).all()
    expected = torch.tensor([loss for _, loss in naive(model, batch)], dtype=torch.float32)
    torch.testing.assert_close(by_target[batch.scored], expected)
    torch.testing.assert_close(next_token_loss(model, batch), expected.sum())


def test_losses_without_gradients_are_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed for a few rows at a time."""
    model, batch = Bigram().eval(), all_in_one()
    expected = token_losses(model, batch).detach()
    for tokens in (1, 2 * batch.tokens.shape[1], 10**6):
        monkeypatch.setattr(losses, "LOSSES_AT_ONCE", tokens)
        with torch.no_grad():
            assert torch.equal(token_losses(model, batch), expected)
            assert token_losses(model, batch.rows(slice(0, 0))).shape == (0, batch.targets.shape[1])


def test_parts_of_a_batch_add_up() -> None:
    model, batch = Bigram(), all_in_one()
    next_token_loss(model, batch).backward()
    whole = model.table.weight.grad.clone()
    model.zero_grad()
    for part in (slice(0, 2), slice(2, 3)):
        next_token_loss(model, batch.rows(part)).backward()
    torch.testing.assert_close(model.table.weight.grad, whole)


def test_what_is_not_scored_cannot_spoil_the_loss() -> None:
    model = Bigram()
    model.table.weight.data[0, 1] = -math.inf
    batch = Batch(torch.tensor([[0, 1, 2]]), torch.full((1, 3), -1), torch.tensor([[False, True]]))
    loss = next_token_loss(model, batch)
    loss.backward()
    assert loss.isfinite() and model.table.weight.grad.isfinite().all()
    none = next_token_loss(model, Batch(batch.tokens, batch.labels, torch.zeros(1, 2, dtype=torch.bool)))
    assert none.item() == 0


def test_an_evaluation_is_the_loss_by_target_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "TOKENS_AT_ONCE", 14)
    model, of = Bigram(), documents()
    result = evaluate(model.train(), of)
    expected = [pair for batch, _ in of.batches() for pair in naive(model, batch)]
    for token in range(VOCABULARY):
        mine = [loss for target, loss in expected if target == token]
        assert result.count[token] == len(mine)
        assert result.total[token] == pytest.approx(sum(mine), rel=1e-5)
        only = np.arange(VOCABULARY) == token
        assert result.mean(only) == pytest.approx(np.mean(mine), rel=1e-5) if mine else math.isnan(result.mean(only))
    assert result.count[-1] == 0
    assert result.mean() == pytest.approx(np.mean([loss for _, loss in expected]), rel=1e-5)
    assert model.training
    assert np.array_equal(evaluate(model.eval(), of).total, result.total)
    assert not model.training


def test_an_evaluation_in_a_context_of_each_batch() -> None:
    model, seen = Bigram(), []

    @contextmanager
    def around(batch: Batch) -> Iterator[None]:
        seen.append(len(batch))
        model.table.weight.data.neg_()
        yield
        model.table.weight.data.neg_()

    plain = evaluate(model, documents())
    inside = evaluate(model, documents(), around)
    model.table.weight.data.neg_()
    outside = evaluate(model, documents())
    assert np.array_equal(inside.total, outside.total) and not np.array_equal(inside.total, plain.total)
    assert sum(seen) == len(LENGTHS) - 1, "one document has no target"


def test_means_are_of_targets_not_of_tokens() -> None:
    loss = TokenLoss(np.array([2.0, 3.0, 0.0]), np.array([1, 2, 0]))
    assert loss.mean() == 5 / 3
    assert loss.mean(np.array([True, False, True])) == 2
    assert math.isnan(loss.mean(np.array([False, False, True])))
