"""RepSelect: the collapse compared with an explicit decomposition, its two gradients, and what learns."""

import copy

import pytest
import torch

from routed_rl.lm.losses import token_losses
from routed_rl.lm.structure import blocks, feed_forward
from routed_rl.lm.suppressors.repselect import collapse
from routed_rl.unlearning import GradDiff, RepSelect
from tests.lm.tiny_models import tiny_model
from tests.unlearning.test_rmu import mixed_batch

WEIGHT = 0.7


def with_values(values, rows, columns, seed=0):
    """Return a matrix with these singular values, and its singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), dtype=torch.float64, generator=generator)).Q
        for size in (rows, columns)
    )
    return sum(value * torch.outer(left[:, i], right[:, i]) for i, value in enumerate(values)), left, right


def collapsed(gradient, share):
    """Divide each of the largest components by its value relative to the smallest of them, on one side and then on
    the other, as the paper's public code does."""
    left, values, right = torch.linalg.svd(gradient)
    kept = [i for i, value in enumerate(values.tolist()) if value > 1e-12 * float(values[0])]
    count = -(-round(1000 * share) * len(kept) // 1000)
    for i in range(count):
        along = right[i]
        gradient = gradient - (1 - values[count - 1] / values[i]) * torch.outer(gradient @ along, along)
    for i in range(count):
        along = left[:, i]
        gradient = gradient - (1 - values[count - 1] / values[i]) * torch.outer(along, along @ gradient)
    return gradient


@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (5, 7), (6, 6)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_collapse_is_that_of_projections_one_by_one(rows, columns, share):
    gradient, _, _ = with_values([8.0, 4.0, 2.0, 1.0, 0.5], rows, columns)
    torch.testing.assert_close(collapse(gradient, share), collapsed(gradient, share), rtol=0, atol=1e-12)


def test_the_answer_is_known_where_the_components_are():
    gradient, left, right = with_values([8.0, 4.0, 2.0, 1.0], 6, 5)
    found = collapse(gradient, 0.5)  # of four components that are not 0
    sizes = [float(left[:, i] @ found @ right[:, i]) for i in range(4)]
    assert sizes == pytest.approx([4.0**2 / 8, 4.0, 2.0, 1.0])
    assert torch.linalg.matrix_rank(found) == 4
    torch.testing.assert_close(collapse(gradient, 0.0), gradient)


def test_matrices_of_experts_are_collapsed_one_by_one_and_no_gradient_stays_none():
    first, second = with_values([3.0, 1.0], 4, 3, 1)[0], with_values([5.0, 2.0], 4, 3, 2)[0]
    found = collapse(torch.stack([first, second, torch.zeros(4, 3, dtype=torch.float64)]), 0.6)
    torch.testing.assert_close(found[0], collapse(first, 0.6))
    torch.testing.assert_close(found[1], collapse(second, 0.6))
    assert not found[2].any()
    half = collapse(first.bfloat16(), 0.6)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_a_step_adds_the_retain_gradient_to_a_collapsed_forget_gradient_of_the_same_length():
    model, batch = tiny_model("llama").double(), mixed_batch()
    method = RepSelect(WEIGHT, share=0.4)
    loss = method.loss(model, 0)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    losses = token_losses(model, batch)
    chosen = [batch.scored & (batch.labels[:, 1:] == label) for label in (0, -1)]
    forget, retain = (losses[which].mean() for which in chosen)
    of_forget = torch.autograd.grad(-forget, list(weights.values()), retain_graph=True)
    of_retain = torch.autograd.grad(WEIGHT * retain, list(weights.values()))
    small = [collapsed(gradient, 0.4) for gradient in of_forget]
    lengths = [torch.cat([gradient.flatten() for gradient in of]).norm() for of in (of_forget, small)]
    assert lengths[1] < 0.9 * lengths[0]
    expected = [lengths[0] / lengths[1] * a + b for a, b in zip(small, of_retain, strict=True)]

    def compute():
        value = loss(model, batch)
        value.backward()
        return value.detach()

    whole = method.gradient(model, compute)
    assert float(whole) == pytest.approx(WEIGHT * retain.item() - forget.item())
    for (name, weight), wanted in zip(weights.items(), expected, strict=True):
        torch.testing.assert_close(weight.grad, wanted, rtol=0, atol=1e-10, msg=name)
    assert loss(model, batch).item() == pytest.approx(whole.item()), "outside a step the loss has both terms"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_weight_matrices_of_mlps_learn_and_nothing_else(family):
    model = tiny_model(family)
    RepSelect().loss(model, 0)
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    if family == "mixtral":
        expected = {f"{block}.mlp.experts.{kind}_proj" for block in blocks(model) for kind in ("gate_up", "down")}
    else:
        expected = {f"{name}.weight" for layer in (0, 1) for name in feed_forward(model, layer).linear}
    assert names == expected


def test_without_components_it_is_graddiff_on_the_mlps():
    model, batch = tiny_model("llama").double(), mixed_batch()
    other = copy.deepcopy(model)
    loss = RepSelect(WEIGHT, share=0.0).loss(model, 0)
    RepSelect(WEIGHT, share=0.0).gradient(model, lambda: loss(model, batch).backward() or torch.zeros(()))
    GradDiff(WEIGHT).loss(other, 0)(other, batch).backward()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, other.get_parameter(name).grad, rtol=0, atol=1e-10)
        else:
            assert weight.grad is None


def test_a_share_is_at_most_one():
    with pytest.raises(ValueError, match=r"share of RepSelect must be at most 1, got 1\.5"):
        RepSelect(share=1.5)
