"""The objective of distillation against the form written out, for models of every kind."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.structure import blocks
from routed_rl.unlearning import DistillationObjective
from routed_rl.unlearning.distillation import last_hidden
from tests.lm.test_losses import Bigram
from tests.unlearning.small_models import (
    DIVIDED,
    MODELS,
    assert_same,
    gradients,
    make_batch,
    make_model,
    written_out,
)


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["tiny", "gemma2", "phi", "cohere"]),
    of_teacher=st.sampled_from(["tiny", "gemma2", "phi", "cohere"]),
    chunk=st.integers(1, 20),
    scored=st.lists(st.booleans(), min_size=16, max_size=16),
)
def test_it_is_the_divergence_of_the_models_logits(kind, of_teacher, chunk, scored):
    batch = make_batch(torch.tensor(scored).view(2, 8))
    student, teacher = MODELS[kind, 0], MODELS[of_teacher, 1]
    found = gradients(student, DistillationObjective(teacher, chunk=chunk)(student, batch))
    assert_same(found, gradients(student, written_out(student, teacher, batch)))
    assert any(scored) == bool(found["loss"] > 0)


@pytest.mark.parametrize("kind", ["tiny", "gemma2", "phi", "cohere"])
def test_a_model_has_nothing_to_learn_from_itself(kind):
    model = MODELS[kind, 0]
    found = gradients(model, DistillationObjective(copy.deepcopy(model))(model, make_batch()))
    assert all((value == 0).all() for value in found.values())


def lengths_of_logits(model, calls):
    """Of how many positions a model has made logits, in each of its calls."""
    lengths = []
    handle = model.register_forward_hook(lambda module, args, output: lengths.append(output.logits.shape[1]))
    for call in calls:
        call()
    handle.remove()
    return lengths


@pytest.mark.parametrize(("kind", "expected"), [*((kind, [1, 1]) for kind in DIVIDED), ("cohere", [1, 9, 9])])
def test_logits_of_all_positions_are_made_only_where_they_must_be(kind, expected):
    batch, student, teacher = make_batch(), make_model(kind), MODELS[kind, 1]
    objective = DistillationObjective(teacher)
    assert lengths_of_logits(student, 2 * [lambda: objective(student, batch)]) == expected
    objective = DistillationObjective(teacher)
    assert lengths_of_logits(teacher, 2 * [lambda: objective(student, batch)]) == expected


@pytest.mark.parametrize("kind", DIVIDED)
def test_the_head_is_found_under_autocast_too(kind):
    student, teacher = (copy.deepcopy(MODELS[kind, seed]).float() for seed in (0, 1))
    objective, batch, found = DistillationObjective(teacher), make_batch(), {}

    def once():
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(student, batch)
        found.update(gradients(student, loss))

    assert lengths_of_logits(student, [once]) == [1]
    expected = gradients(student, written_out(student, teacher, batch))
    assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=0.02)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - value).norm() <= 0.2 * value.norm(), name


class TwiceLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def by_subclass(model):
    head = model.lm_head
    model.lm_head = TwiceLinear(head.in_features, head.out_features, bias=head.bias is not None).double()
    model.lm_head.load_state_dict(head.state_dict())


def by_hook(model):
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)


def by_pre_hook(model):
    model.lm_head.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def by_forward(model):
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: 2 * forward(x)


@pytest.mark.parametrize("change", [by_subclass, by_hook, by_pre_hook, by_forward])
def test_a_head_that_is_changed_afterwards_is_not_taken_for_a_plain_one(change):
    batch, teacher = make_batch(), MODELS["tiny", 1]
    student = make_model("tiny")
    objective = DistillationObjective(teacher)
    objective(student, batch)
    change(student)
    assert last_hidden(student, batch.tokens) is None
    assert_same(gradients(student, objective(student, batch)), gradients(student, written_out(student, teacher, batch)))


def test_logits_that_are_0_prove_nothing():
    model = make_model("cohere")
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert last_hidden(model, make_batch()) is None


def test_models_that_are_not_of_transformers():
    student, teacher = Bigram(), Bigram()
    teacher.table.weight.data = teacher.table.weight.data.flip(0)
    batch = make_batch()
    batch = Batch(batch.tokens % 8, batch.labels, batch.scored)
    loss = DistillationObjective(teacher)(student, batch)
    p, q = teacher.table.weight.softmax(-1), (2 * student.table.weight).softmax(-1)  # twice as large in training
    expected = (p * (p.log() - q.log())).sum(-1)[batch.tokens[:, :-1]].sum()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("kind", "weight"), [("tiny", 0.5), ("gemma2", 10.0), ("cohere", 10.0)])
def test_residual_streams_are_compared_after_each_block(kind, weight):
    scored = torch.arange(16).view(2, 8) % 3 > 0
    batch, student, teacher = make_batch(scored), MODELS[kind, 0], MODELS[kind, 1]

    def streams(model):
        states = model(input_ids=batch.tokens, output_hidden_states=True).hidden_states[1:]
        last = []
        handle = model.get_submodule(blocks(model)[-1]).register_forward_hook(
            lambda module, args, output: last.append(output[0] if isinstance(output, tuple) else output)
        )
        model(input_ids=batch.tokens)
        handle.remove()
        return [*states[:-1], last[0]]  # transformers' last is after the last norm

    pairs = list(zip(streams(student), streams(teacher), strict=True))
    distances = [((x - y.detach()) ** 2).sum(-1)[:, :-1][scored].sum() / x.shape[-1] for x, y in pairs]
    expected = written_out(student, teacher, batch) + weight * sum(distances) / len(distances)
    found = DistillationObjective(teacher, weight)(student, batch)
    assert_same(gradients(student, found), gradients(student, expected))
