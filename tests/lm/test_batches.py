"""Packed batches: every target once, no padding, fixed by seed and step, and labels at the right tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch, Batches
from tests.lm.texts import corpus_of

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def equal(one: Batch, other: Batch) -> bool:
    names = ("tokens", "labels", "scored")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@given(LENGTHS, st.integers(2, 15), st.none() | st.integers(1, 4), st.none() | st.integers(0, 9), st.data())
def test_every_scored_target_of_an_epoch_is_there_once(lengths, length, batch_size, seed, data) -> None:
    corpus = corpus_of(lengths)
    chosen = np.array(data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True)))
    total = sum(lengths[document] for document in chosen)
    rows = total // (length - 1)
    if rows < (batch_size or 1):
        with pytest.raises(ValueError, match=f"{len(chosen)} documents fill {rows} rows of {length} tokens"):
            Batches(corpus, chosen, length, batch_size, seed)
        return
    batches = Batches(corpus, chosen, length, batch_size, seed)
    places = {int(place) for document in chosen for place in range(*corpus.starts[document : document + 2])}
    firsts = set(corpus.starts[:-1].tolist())
    for epoch in range(2):
        packed = list(batches.epoch(epoch))
        tokens, scored = (torch.cat([getattr(batch, name) for batch in packed]) for name in ("tokens", "scored"))
        assert tokens.shape == (batches.steps_per_epoch * (batch_size or rows), length)
        assert scored.shape == (len(tokens), length - 1)
        stream = tokens[:, :-1].flatten().tolist()
        assert len(set(stream)) == len(stream) and set(stream) <= places  # no padding, nothing twice
        dropped = total - len(stream)
        assert 0 <= dropped < (batch_size or 1) * (length - 1)
        targets = tokens[:, 1:][scored].tolist()
        assert sorted(targets) == sorted({token + 1 for token in stream} & places - firsts)
        assert (tokens[:, :-1][scored] == tokens[:, 1:][scored] - 1).all()  # each after the one before it
        if seed is None:
            order = [place for document in chosen for place in range(*corpus.starts[document : document + 2])]
            assert stream == order[: len(stream)]


@given(LENGTHS.filter(lambda lengths: sum(lengths) > 9), st.none() | st.integers(0, 9), st.permutations(range(12)))
def test_a_batch_is_a_function_of_seed_and_step(lengths, seed, steps) -> None:
    corpus = corpus_of(lengths)
    used = Batches(corpus, np.arange(len(lengths)), 4, 2, seed)
    for step in steps:
        fresh = Batches(corpus, np.arange(len(lengths)), 4, 2, seed)
        assert equal(used.batch(step), fresh.batch(step))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    corpus = corpus_of([5] * 40)
    orders = [
        Batches(corpus, np.arange(40), 6, seed=seed).batch(epoch).tokens.flatten().tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == 4
    in_order = Batches(corpus, np.arange(40), 6)
    assert equal(in_order.batch(0), in_order.batch(7))


def test_documents_one_token_shorter_than_rows_have_a_row_each() -> None:
    batch = Batches(corpus_of([4] * 6), np.arange(6), 5, seed=1).batch(0)
    assert batch.tokens.shape == (6, 5)
    assert (batch.tokens[:, :4] == batch.tokens[:, :1] + torch.arange(4)).all()
    assert batch.scored.tolist() == [[True, True, True, False]] * 6


@given(LENGTHS.filter(lambda lengths: sum(lengths) > 9), st.data())
def test_labels_are_those_of_documents_and_tokens(lengths, data) -> None:
    count, tokens = len(lengths), sum(lengths)
    forget = np.array(data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    labelled = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    corpus = corpus_of(lengths, forget)
    naive = []
    for document in range(count):
        marks = forget[corpus.starts[document] : corpus.starts[document + 1]]
        mistaken = not marks.any()
        naive += [FORGET_LABEL if labelled[document] and (mark or mistaken) else NO_LABEL for mark in marks]
    for batch in Batches(corpus, np.arange(count), 4, 2, 0, labelled).epoch():
        assert batch.labels.tolist() == [[naive[token] for token in row] for row in batch.tokens.tolist()]
    for batch in Batches(corpus, np.arange(count), 4, 2, 0).epoch():
        assert (batch.labels == NO_LABEL).all()


def test_parts_of_a_batch() -> None:
    batch = Batches(corpus_of([7, 5, 9]), np.arange(3), 5).batch(0)
    assert len(batch) == 5 and batch.tokens.dtype == batch.labels.dtype == torch.int64
    assert torch.equal(batch.targets, batch.tokens[:, 1:])
    part = batch.rows(slice(1, 3))
    assert len(part) == 2 and torch.equal(part.scored, batch.scored[1:3])
    assert equal(batch.to("cpu"), batch)
    assert batch.whole is batch and part.whole is batch, "it knows what it is a part of"
    assert part.to("cpu").whole is batch and part.rows(slice(0, 1)).whole is batch
    values = batch.at_positions(batch.scored.float(), rest=0.5)
    assert torch.equal(values[:, :-1], batch.scored.float()) and (values[:, -1] == 0.5).all()


@pytest.mark.parametrize(("length", "batch_size"), [(1, 2), (4, 0), (4, -1)])
def test_batches_need_rows_and_targets(length: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"got {batch_size} rows of {length} tokens"):
        Batches(corpus_of([9, 9]), np.arange(2), length, batch_size)
