"""Rows of documents: every target once, documents kept apart, fixed by seed and step, labels at the right tokens."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch, Batches, WholeDocuments
from tests.lm.texts import corpus_of

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=20)
LONGER = LENGTHS.filter(lambda lengths: sum(size > 1 for size in lengths) > 7)
"""Enough documents with a target for a batch of two rows of four tokens."""


def equal(one: Batch, other: Batch) -> bool:
    names = ("tokens", "labels", "scored", "examples")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def naive_examples(corpus, documents, length):
    """Return the places of each example: parts of documents that overlap by one token."""
    found = []
    for document in documents:
        places = list(range(*corpus.starts[document : document + 2]))
        while len(places) > 1:
            found.append(places[:length])
            places = places[length - 1 :]
    return sorted(found)


def examples_of(batch):
    """Return the tokens of each example in a batch, and the tokens that are scored."""
    found, scored = [], []
    for row in range(len(batch)):
        for number in range(int(batch.examples[row].max()) + 1):
            of = batch.examples[row] == number
            found.append(batch.tokens[row][of].tolist())
            assert batch.positions[row][of].tolist() == list(range(int(of.sum())))
            scored.append(batch.targets[row][of[1:] & batch.scored[row]].tolist())
    return found, scored


@given(LENGTHS, st.integers(2, 15), st.integers(1, 4), st.none() | st.integers(0, 9), st.booleans(), st.data())
def test_an_epoch_has_every_example_once(lengths, length, batch_size, seed, pack, data) -> None:
    corpus = corpus_of(lengths)
    chosen = np.array(data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True)))
    expected = naive_examples(corpus, chosen, length)
    try:
        batches = Batches(corpus, chosen, length, batch_size, seed, pack=pack)
    except ValueError as error:
        assert f"{len(chosen)} documents fill" in str(error) and re.search(r"\(length\), or batch_size=\d", str(error))
        assert pack or len(expected) < batch_size
        return
    assert batches.tokens_per_step <= batch_size * length
    for epoch in range(2):
        rows = list(batches.epoch(epoch))
        assert len(rows) == batches.steps_per_epoch and all(len(batch) == batch_size for batch in rows)
        parts = [examples_of(batch) for batch in rows]
        found = sorted(example for examples, _ in parts for example in examples)
        assert all(example in expected for example in found) and len(set(map(tuple, found))) == len(found)
        if not pack:
            assert len(found) == len(expected) // batch_size * batch_size
        elif batch_size == 1:
            assert found == expected, "nothing is left out"
        for examples, scored in parts:
            assert [example[1:] for example in examples] == scored
        assert all(int(batch.real.sum(dim=1).max()) == batch.tokens.shape[1] <= length for batch in rows)


@given(LENGTHS, st.integers(2, 15))
def test_packed_rows_waste_little(lengths, length) -> None:
    """Two rows of which the tokens fit into one are not left apart."""
    corpus = corpus_of([*lengths, 5])
    batches = Batches(corpus, np.arange(len(lengths) + 1), length, 1)
    sizes = sorted(int(batch.real.sum()) for batch in batches.epoch())
    assert len(sizes) == 1 or sizes[0] + sizes[1] > length


@given(LONGER, st.none() | st.integers(0, 9), st.permutations(range(12)))
def test_a_batch_is_a_function_of_seed_and_step(lengths, seed, steps) -> None:
    corpus = corpus_of(lengths)
    used = Batches(corpus, np.arange(len(lengths)), 4, 2, seed)
    for step in steps:
        fresh = Batches(corpus, np.arange(len(lengths)), 4, 2, seed)
        assert equal(used.batch(step), fresh.batch(step))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    corpus = corpus_of([5] * 40)
    orders = [
        Batches(corpus, np.arange(40), 6, 40, seed=seed).batch(epoch).tokens.flatten().tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == 4
    in_order = Batches(corpus, np.arange(40), 6, 40)
    assert equal(in_order.batch(0), in_order.batch(7))


@given(LONGER, st.data())
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
        expected = torch.tensor(naive)[batch.tokens]
        assert torch.equal(batch.labels, expected.where(batch.real, NO_LABEL))
    for batch in Batches(corpus, np.arange(count), 4, 2, 0).epoch():
        assert (batch.labels == NO_LABEL).all()


@given(LENGTHS.filter(lambda lengths: max(lengths) > 1), st.integers(2, 15), st.integers(1, 30), st.data())
def test_whole_documents_have_rows_of_their_own(lengths, window, at_once, data) -> None:
    corpus = corpus_of(lengths)
    documents = np.array(data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1)))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("routed_rl.lm.batches.TOKENS_AT_ONCE", at_once)
        for batch, numbers in WholeDocuments(corpus, documents).batches(window):
            assert batch.tokens.numel() <= at_once or len(batch) == 1
            assert not batch.packed and len(numbers) == len(batch) and int(batch.examples.max()) == 0
            for row, real, number in zip(batch.tokens, batch.real, numbers, strict=True):
                found.append(row[real].tolist())
                assert corpus.starts[number] <= found[-1][0] < corpus.starts[number + 1]
    assert sorted(found) == naive_examples(corpus, documents, window)


@given(LONGER, st.data())
def test_only_answers_are_scored_where_only_they_count(lengths, data) -> None:
    tokens = sum(lengths)
    counts = np.array(data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    corpus = corpus_of(lengths)
    corpus = type(corpus)(corpus.tokens, corpus.forget, corpus.starts, corpus.validation, {}, counts)
    firsts = set(corpus.starts[:-1].tolist())
    expected = [place for place in range(tokens) if counts[place] and place not in firsts]
    found = [
        token
        for batch, _ in WholeDocuments(corpus, np.arange(len(lengths))).batches(5)
        for token in batch.targets[batch.scored].tolist()
    ]
    assert sorted(found) == expected
    assert np.flatnonzero(corpus.counts(np.arange(len(lengths)), tokens)).tolist() == expected


def test_parts_of_a_batch() -> None:
    batch = Batches(corpus_of([7, 5, 9]), np.arange(3), 5, 4).batch(0)
    assert len(batch) == 4 and batch.tokens.dtype == batch.labels.dtype == torch.int64
    assert torch.equal(batch.targets, batch.tokens[:, 1:])
    part = batch.rows(slice(1, 3))
    assert len(part) == 2 and torch.equal(part.scored, batch.scored[1:3])
    assert equal(batch.to("cpu"), batch)
    assert batch.whole is batch and part.whole is batch, "it knows what it is a part of"
    assert part.to("cpu").whole is batch and part.rows(slice(0, 1)).whole is batch
    values = batch.at_positions(batch.scored.float(), rest=0.5)
    assert torch.equal(values[:, :-1], batch.scored.float()) and (values[:, -1] == 0.5).all()


def test_sums_by_example() -> None:
    examples = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, -1, -1]])
    tokens = torch.arange(10).view(2, 5)
    scored = torch.tensor([[True, True, False, True], [False, True, False, False]])
    batch = Batch(tokens, torch.full_like(tokens, -1), scored, examples, packed=True)
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, 64.0, 128.0]])
    sums = batch.by_example(values * batch.scored)
    assert sums.tolist() == [[3.0, 8.0, 0, 0, 0], [0.0, 32.0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]], "padding goes on from the last example"


@pytest.mark.parametrize(("length", "batch_size"), [(1, 2), (4, 0), (4, -1)])
def test_batches_need_rows_and_targets(length: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"got {batch_size} rows of {length} tokens"):
        Batches(corpus_of([9, 9]), np.arange(2), length, batch_size)
