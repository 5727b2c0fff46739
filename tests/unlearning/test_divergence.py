"""The chunked divergence and all its gradients, compared with loops and with the usual formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from routed_rl.unlearning import Head, divergence, teacher_target, top_k_target

V, D = 11, 4


def some(*shape, seed=0, scale=1.0, dtype=torch.float64):
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def make_head(seed, bias=True, cap=None, dtype=torch.float64):
    return Head(some(V, D, seed=seed, dtype=dtype), some(V, seed=seed + 1, dtype=dtype) if bias else None, cap)


def learning(head):
    """Return the tensors of a head, made to require gradients."""
    return [tensor.requires_grad_() for tensor in (head.weight, head.bias) if tensor is not None]


def gradients(loss, tensors):
    return [loss.detach(), *torch.autograd.grad(loss, tensors)]


def three_softmaxes(student, teacher):
    """Return the divergence of logits as it is usually written."""
    return (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum()


def loop(student, teacher):
    """Return the divergence, computed by numpy number by number."""
    total = 0.0
    for of_student, of_teacher in zip(student, teacher, strict=True):
        p, q = (np.exp(np.array(row)) / np.exp(np.array(row)).sum() for row in (of_teacher, of_student))
        total += sum(p[v] * (math.log(p[v]) - math.log(q[v])) for v in range(len(p)))
    return total


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 9),
    chunk=st.integers(1, 12),
    bias=st.booleans(),
    cap=st.sampled_from([None, 2.0]),
    of_teacher=st.sampled_from([None, 3.0]),
)
def test_loss_and_gradients_are_those_of_the_form_written_out(n, chunk, bias, cap, of_teacher):
    hidden, head = some(n, D, seed=1).requires_grad_(), make_head(2, bias, cap)
    teacher, states = make_head(5, not bias, of_teacher), some(n, D, seed=8)
    tensors = [hidden, *learning(head)]
    found = gradients(3 * divergence(hidden, head, teacher_target(states, teacher), chunk), tensors)
    expected = gradients(3 * three_softmaxes(head(hidden), teacher(states)), tensors)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-12)
    assert found[0].item() == pytest.approx(3 * loop(head(hidden).tolist(), teacher(states).tolist()), abs=1e-9)


def test_logits_may_come_in_as_they_are():
    logits, others = some(5, V).requires_grad_(), some(5, V, seed=1)
    found = gradients(divergence(logits, Head(), teacher_target(others, Head()), 2), [logits])
    expected = gradients(three_softmaxes(logits, others), [logits])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_model_does_not_diverge_from_itself(dtype):
    hidden, head = some(7, D, dtype=dtype).requires_grad_(), make_head(1, cap=2.0, dtype=dtype)
    target = teacher_target(hidden.detach().clone(), Head(*(t.clone() for t in (head.weight, head.bias)), 2.0))
    tensors = [hidden, *learning(head)]
    loss, *slopes = gradients(divergence(hidden, head, target, 3), tensors)
    assert loss == 0 and all((slope == 0).all() for slope in slopes)
    assert loss.dtype == torch.promote_types(dtype, torch.float32) and slopes[0].dtype == dtype


def test_only_what_learns_gets_a_gradient():
    hidden, head, states = some(5, D), make_head(2), some(5, D, seed=4)
    target = teacher_target(states, make_head(6))
    head.bias.requires_grad_()
    divergence(hidden, head, target).backward()
    assert head.bias.grad.abs().sum() > 0 and hidden.grad is None and head.weight.grad is None
    with torch.no_grad():
        assert not divergence(hidden, head, target).requires_grad


def test_a_second_backward_pass_is_refused():
    hidden = some(5, D).requires_grad_()
    loss = divergence(hidden, make_head(2), teacher_target(some(5, D, seed=4), make_head(6)))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_is_impossible_for_the_teacher_adds_nothing():
    logits, others = some(1, 3).requires_grad_(), torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64)
    loss, slope = gradients(divergence(logits, Head(), teacher_target(others, Head())), [logits])
    p, q = others.softmax(-1), logits.detach().softmax(-1)
    assert loss.item() == pytest.approx(sum(float(p[0, v] * (p[0, v] / q[0, v]).log()) for v in (0, 1)))
    torch.testing.assert_close(slope, q - p)
    # A student with logits that are NaN is not hidden.
    broken = torch.full((1, 3), math.nan)
    assert divergence(broken, Head(), teacher_target(others, Head())).isnan()


def test_under_autocast_sums_are_in_single_precision():
    """Compare with double precision: logits are rounded to 8 bits, but sums over positions are not."""
    n = 4000
    hidden, head = some(n, D, seed=1, dtype=torch.float32).requires_grad_(), make_head(2, dtype=torch.float32)
    states, teacher = some(n, D, seed=5, dtype=torch.float32), make_head(6, dtype=torch.float32)
    tensors = [hidden, *learning(head)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = divergence(hidden, head, teacher_target(states, teacher), 16)
    found = gradients(loss, tensors)
    double = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = gradients(
        three_softmaxes(F.linear(*double), F.linear(states.double(), teacher.weight.double(), teacher.bias.double())),
        double,
    )
    for value, other in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert (value.double() - other).norm() < 0.01 * other.norm()


# --- the likeliest tokens alone -----------------------------------------------------------------


def largest(logits, k):
    log_p = logits.log_softmax(-1)
    top, which = log_p.topk(k)
    return top, which, log_p.scatter(-1, which, -math.inf).logsumexp(-1)


def buckets(student, teacher, k):
    """Return the divergence over the k most likely tokens and one bucket for the rest, written out."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    which = p.topk(k).indices
    p, q = p.gather(-1, which), q.gather(-1, which)
    inside, rest = (p * (p.log() - q.log())).sum(), 1 - p.sum(-1)
    return inside + (rest * (rest.log() - (1 - q.sum(-1)).log())).sum()


@settings(deadline=None, max_examples=30)
@given(k=st.integers(1, V - 1), chunk=st.integers(1, 7), cap=st.sampled_from([None, 2.0]))
def test_the_rest_is_one_bucket(k, chunk, cap):
    hidden, head, teacher = some(6, D, seed=1).requires_grad_(), make_head(2, cap=cap), some(6, V, seed=5)
    tensors = [hidden, *learning(head)]
    found = gradients(divergence(hidden, head, top_k_target(*largest(teacher, k)), chunk), tensors)
    expected = gradients(buckets(head(hidden), teacher, k), tensors)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-11)
    assert 0 <= found[0] <= three_softmaxes(head(hidden), teacher) + 1e-12, "less is known of the teacher"


def test_all_tokens_are_the_whole_vocabulary():
    hidden, head, teacher = some(6, D, seed=1).requires_grad_(), make_head(2), some(6, V, seed=5)
    tensors = [hidden, *learning(head)]
    found = gradients(divergence(hidden, head, top_k_target(*largest(teacher, V)), 4), tensors)
    expected = gradients(three_softmaxes(head(hidden), teacher), tensors)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


def test_a_student_may_divide_the_rest_as_it_likes():
    student = some(3, V).requires_grad_()
    found = gradients(divergence(student, Head(), top_k_target(*largest(student.detach(), 4))), [student])
    torch.testing.assert_close(found, [torch.zeros_like(part) for part in found], rtol=0, atol=1e-12)
    # A teacher that is certain leaves no probability for the rest.
    sure = torch.full((3, V), -1e4, dtype=torch.float64)
    sure[:, 0] = 0.0
    loss, slope = gradients(divergence(student, Head(), top_k_target(*largest(sure, 2))), [student])
    torch.testing.assert_close(loss, -student.log_softmax(-1)[:, 0].sum().detach())
    assert slope.isfinite().all()
