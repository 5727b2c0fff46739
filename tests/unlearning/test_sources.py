"""Batches of labelled forget rows and of retain rows, which alternate."""

import numpy as np
import pytest
import torch

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batches
from routed_rl.unlearning import ForgetAndRetain
from tests.lm.texts import corpus_of

CORPUS = corpus_of([6] * 12, np.arange(72) % 6 < 5)
ALL = np.ones(12, dtype=bool)


@pytest.mark.parametrize(("forget_rows", "retain_rows"), [(3, 3), (1, 4), (4, 3)])
def test_batches_have_the_rows_of_both(forget_rows, retain_rows):
    forget = Batches(CORPUS, np.arange(4), 6, forget_rows, labelled=ALL)
    retain = Batches(CORPUS, np.arange(4, 12), 6, retain_rows, seed=1)
    both = ForgetAndRetain(forget, retain)
    for step in (0, 1, 5):
        batch = both.batch(step)
        marked = (batch.labels == FORGET_LABEL).any(dim=1)
        assert ((batch.labels == NO_LABEL).all(dim=1) == ~marked).all()
        assert (batch.labels[marked] == torch.tensor([0, 0, 0, 0, 0, -1])).all(), "the labels of tokens are kept"
        for rows, source in ((marked, forget), (~marked, retain)):
            assert torch.equal(batch.tokens[rows], source.batch(step).tokens)
            assert torch.equal(batch.scored[rows], source.batch(step).scored)


@pytest.mark.parametrize(
    ("rows", "turns"), [((3, 3), [1, 0, 1, 0, 1, 0]), ((4, 2), [1, 0, 1, 1, 0, 1]), ((1, 4), [0, 0, 1, 0, 0])]
)
def test_they_take_turns(rows, turns):
    forget, retain = (Batches(CORPUS, np.arange(12), 6, count, labelled=ALL) for count in rows)
    assert (ForgetAndRetain(forget, retain).batch(0).labels[:, 0] == FORGET_LABEL).long().tolist() == turns


def test_shorter_rows_are_padded():
    long, short = (Batches(CORPUS, np.arange(4), length, 2, labelled=ALL) for length in (6, 3))
    batch = ForgetAndRetain(long, short).batch(0)
    assert batch.tokens.shape == (4, 6) and batch.real.sum(dim=1).tolist() == [6, 3, 6, 3]
    assert torch.equal(batch.tokens[1::2, :3], short.batch(0).tokens) and not batch.scored[1::2, 2:].any()


def test_forget_rows_without_labels_are_refused():
    with pytest.raises(ValueError, match="forget rows need labels"):
        ForgetAndRetain(*(Batches(CORPUS, np.arange(4), 6, 2) for _ in range(2))).batch(0)
