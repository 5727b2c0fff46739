"""Fine-tuning: a copy learns, the best step is kept, and training stops when the loss only rises."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from routed_rl.lm import FineTuning, fine_tune
from routed_rl.lm.batches import WholeDocuments
from routed_rl.lm.losses import evaluate, next_token_loss
from tests.lm.test_losses import Bigram
from tests.lm.texts import corpus_of


def documents():
    corpus = corpus_of([6, 6, 6])
    corpus.tokens[:] = np.array([0, 1, 2, 3, 4, 5] * 3)
    return WholeDocuments(corpus, np.arange(3))  # a row each


def scripted(values):
    """Return a measure that gives these numbers, and a list that collects the models it was called with."""
    left, seen = iter(values), []

    def measure(model):
        seen.append(copy.deepcopy(model.state_dict()))
        return {"loss": next(left), "other": -1.0}

    return measure, seen


def same(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("values", "best", "steps"),
    [
        ([5, 4, 3, 2, 1, 0], 5, 5),
        ([5, 4, 6, 7, 8, 0], 1, 4),  # three rises, one after the other
        ([5, 6, 7, 4, 5, 6], 3, 5),  # two rises, and two again
        ([1, 2, 3, 4, 0, 0], 0, 3),  # it never falls
        ([5, 6, 7, 7, 8, 3], 5, 5),  # an equal number is no rise
        ([3, 2, 2, 2, 5, 5], 3, 5),  # among equal steps the last
    ],
)
def test_the_best_step_is_given_and_three_rises_end_it(values, best, steps):
    model = Bigram()
    before = copy.deepcopy(model.state_dict())
    measure, seen = scripted([float(value) for value in values])
    ticks = []
    tuned, history = fine_tune(model, documents(), FineTuning(steps=5), measure, lambda: ticks.append(1))
    assert [entry["loss"] for entry in history] == values[: steps + 1] and len(seen) == steps + 1 == len(ticks) + 1
    assert all(entry["other"] == -1.0 for entry in history)
    assert same(tuned, seen[best]) and same(model, before)
    assert all(not same(tuned, seen[step]) for step in range(steps + 1) if step != best), "each step changes it"


def test_patience_and_steps_are_options():
    model = Bigram()
    measure, _ = scripted([1.0, 2.0, 3.0, 4.0])
    _, history = fine_tune(model, documents(), FineTuning(steps=9, patience=1), measure)
    assert len(history) == 2
    tuned, history = fine_tune(model, documents(), FineTuning(steps=0), lambda tuned: {"loss": 0.5})
    assert history == [{"step": 0, "loss": 0.5}] and same(tuned, model.state_dict()) and tuned is not model


@pytest.mark.parametrize(("steps", "every", "measured"), [(7, 3, [0, 3, 6, 7]), (6, 3, [0, 3, 6]), (2, 3, [0, 2])])
def test_it_may_be_measured_less_often_and_always_at_the_end(steps, every, measured):
    model = Bigram()

    def measure(tuned):
        return {"loss": evaluate(tuned, documents()).mean()}

    _, often = fine_tune(model, documents(), FineTuning(steps), measure)
    ticks = []
    tuned, history = fine_tune(model, documents(), FineTuning(steps, every=every), measure, lambda: ticks.append(1))
    assert [entry["step"] for entry in history] == measured and len(ticks) == steps
    assert history == [often[step] for step in measured]
    assert measure(tuned)["loss"] == history[-1]["loss"], "which is the lowest"


def test_steps_are_those_of_adamw_on_all_documents():
    """Compare with the same steps written out. The original model keeps its weights, mode and gradients."""
    model, batches = Bigram().eval(), documents()
    before, settings = copy.deepcopy(model.state_dict()), FineTuning(steps=4, learning_rate=0.1)

    def measure(tuned):
        return {"loss": evaluate(tuned, batches).mean()}

    tuned, history = fine_tune(model, batches, settings, measure)
    assert same(model, before) and not model.training and all(p.grad is None for p in model.parameters())

    by_hand = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(by_hand.parameters(), 0.1, betas=(0.9, 0.95), weight_decay=0.1)
    losses = [measure(by_hand)["loss"]]
    ((batch, _),) = batches.batches()
    assert len(batch) == 3 and int(batch.scored.sum()) == 15
    for _ in range(4):
        optimizer.zero_grad()
        (next_token_loss(by_hand, batch) / 15).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        losses.append(measure(by_hand)["loss"])
    assert [entry["loss"] for entry in history] == pytest.approx(losses, rel=1e-6)
    assert losses == sorted(losses, reverse=True)
    for tensor, other in zip(tuned.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(tensor, other)


def test_what_is_relearned_is_known():
    """Each token has one follower, so the answer is known: the loss goes to 0, and the follower is the most likely
    token.
    """
    settings = FineTuning(steps=400, learning_rate=0.05)
    tuned, history = fine_tune(
        Bigram(), documents(), settings, lambda tuned: {"loss": evaluate(tuned, documents()).mean()}
    )
    assert history[0]["loss"] > 1.5 and history[-1]["loss"] < 0.02
    assert tuned.table.weight[:5].argmax(dim=1).tolist() == [1, 2, 3, 4, 5]


def test_a_loss_that_is_no_number_ends_it():
    measure, _ = scripted([1.0, float("nan"), 0.5])
    with pytest.raises(
        FloatingPointError, match="after 1 steps of fine-tuning the loss loss is nan: lower the learning rate"
    ):
        fine_tune(Bigram(), documents(), FineTuning(), measure)
