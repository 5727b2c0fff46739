"""LAT: its loss compared with loops, the adversary's steps written out, and what it leaves alone."""

import copy
import math

import pytest
import torch

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch
from routed_rl.lm.losses import target_logits, token_losses
from routed_rl.lm.structure import blocks
from routed_rl.lm.suppressors.lat import _adding, _changed, unlikelihood
from routed_rl.unlearning import Lat
from tests.lm.tiny_models import tiny_model
from tests.unlearning.test_rmu import mixed_batch

RADIUS, WEIGHT = 0.4, 0.7


def test_unlikelihood_is_the_formula_and_exact_where_a_token_is_certain():
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = [
        [-math.log(1 - float(logits[row, t].softmax(-1)[targets[row, t]])) for t in range(3)] for row in range(2)
    ]
    torch.testing.assert_close(unlikelihood(logits, targets), torch.tensor(expected, dtype=torch.float64))
    certain = torch.tensor([[[60.0, 0.0, 0.0]]], requires_grad=True)  # in single precision, 1 - p is 0
    found = unlikelihood(certain, torch.tensor([[0]]))
    found.sum().backward()
    assert float(found) == pytest.approx(60 - math.log(2))
    torch.testing.assert_close(certain.grad, torch.tensor([[[1.0, -0.5, -0.5]]]))


def attacked(model, batch, depth, steps):
    """Return forget rows' logits after an attack on one stream: a loop over rows and positions, with gradients by
    differences in the state itself."""
    name = blocks(model)[depth - 1]
    rows, length = batch.tokens.shape
    change = torch.zeros(rows, length, 16, dtype=torch.float64)

    def run(change):
        def hook(module, args, output):
            return output + RADIUS * output.detach().norm(dim=-1, keepdim=True) * change

        handle = model.get_submodule(name).register_forward_hook(hook)
        logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1]
        handle.remove()
        return logits

    for _ in range(steps):
        leaf = change.clone().requires_grad_(True)
        likely = run(leaf).log_softmax(-1).gather(-1, batch.tokens[:, 1:, None])[..., 0]
        likely[batch.scored].sum().backward()
        for row in range(rows):
            for t in range(length):
                gradient = leaf.grad[row, t]
                if float(gradient.norm()) > 0:
                    moved = change[row, t] + 2 / steps * gradient / gradient.norm()
                    change[row, t] = moved / max(1.0, float(moved.norm()))
    return run(change)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_loss_is_that_of_a_loop(depth, steps):
    model, batch = tiny_model("llama").double(), mixed_batch()
    for parameter in model.parameters():
        parameter.data *= 0.5  # so that not all targets are hopeless
    loss = Lat(WEIGHT, RADIUS, steps, str(depth)).loss(model, 0)
    found = loss(model, batch)
    forget = attacked(model, batch.rows(slice(0, 2)), depth, steps)
    likely = forget.softmax(-1).gather(-1, batch.tokens[:2, 1:, None])[..., 0]
    pushed = -(1 - likely[batch.scored[:2]]).log()
    retain = token_losses(model, batch.rows(slice(2, 4)))[batch.scored[2:]]
    assert float(found) == pytest.approx(float(pushed.mean() + WEIGHT * retain.mean()), rel=1e-9)


def test_the_adversary_makes_forget_targets_more_likely_within_the_ball_and_leaves_retain_rows():
    model, batch = tiny_model("llama").double(), mixed_batch()
    method, names, changed = Lat(radius=RADIUS), blocks(model), _changed(batch)
    found = method._attack(model, names, 16, batch, changed)
    for change in found.values():
        length = change.norm(dim=-1)
        assert (length <= 1 + 1e-12).all() and not length[2:].any() and length[:2, :-1].any()
        assert not change.requires_grad
    with torch.no_grad():
        before = token_losses(model, batch)
        with _adding(model, found, RADIUS):
            after = token_losses(model, batch)
    assert after[:2].sum() < before[:2].sum()
    assert torch.equal(after[2:], before[2:])
    assert torch.equal(token_losses(model, batch), before), "no hook is left"


def test_a_step_leaves_no_gradient_but_its_own_and_is_the_same_again():
    model, batch = tiny_model("llama"), mixed_batch()
    weights = copy.deepcopy(model.state_dict())
    loss = Lat().loss(model, 0)
    value = loss(model, batch)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.equal(loss(model, batch), value.detach())
    value.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_without_an_adversary_it_is_the_plain_loss():
    model, batch = tiny_model("llama").double(), mixed_batch()
    logits = target_logits(model, batch)
    forget = unlikelihood(logits, batch.targets)[:2][batch.scored[:2]].mean()
    retain = token_losses(model, batch)[2:][batch.scored[2:]].mean()
    for method in (Lat(WEIGHT, radius=0.0), Lat(WEIGHT, inner_steps=0)):
        assert float(method.loss(model, 0)(model, batch)) == pytest.approx(float(forget + WEIGHT * retain), rel=1e-12)


def test_examples_in_a_row_are_changed_only_where_they_have_forget_targets():
    tokens = torch.arange(8)[None]
    examples = torch.tensor([[0, 0, 0, 1, 1, 1, -1, -1]])
    labels = torch.full_like(tokens, NO_LABEL)
    labels[0, 4] = FORGET_LABEL
    scored = torch.tensor([[True, True, False, True, True, False, False]])
    batch = Batch(tokens, labels, scored, examples, packed=True)
    assert _changed(batch).tolist() == [[False, False, False, True, True, True, False, False]]


def test_a_model_that_computes_its_blocks_again_is_refused():
    model = tiny_model("llama")
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"lat changes what blocks give, .*: leave out gradient_checkpointing"):
        Lat().loss(model, 0)
