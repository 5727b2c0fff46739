"""Circuit breakers: the loss compared with loops, what learns, and a start where the plain cosine has no gradient."""

import math

import pytest
import torch

from routed_rl.lm.structure import blocks
from routed_rl.unlearning import CircuitBreaker
from tests.lm.tiny_models import tiny_model
from tests.unlearning.test_rmu import changed, mixed_batch, stream

WEIGHT = 0.6


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.mark.parametrize(("depths", "read"), [(None, (1, 2)), ("2", (2,)), ("2, 1", (1, 2))])
@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_the_loss_is_that_of_a_loop(family, depths, read):
    model, batch = tiny_model(family).double(), mixed_batch()
    loss = CircuitBreaker(WEIGHT, depths).loss(model, seed=3)
    learned = changed(model)
    direction = torch.randn(16, generator=torch.Generator().manual_seed(3)).tolist()
    direction = [x / math.hypot(*direction) for x in direction]
    expected = 0.0
    with torch.no_grad():
        for depth in read:
            now, before = (stream(of, batch.tokens, depth).tolist() for of in (learned, model))
            turned, held = [], []
            for row in range(4):
                for t in range(8):
                    if not batch.scored[row, t]:
                        continue
                    h, h0 = now[row][t], before[row][t]
                    if row < 2:
                        aim = [x + 0.1 * math.hypot(*h0) * u for x, u in zip(h0, direction, strict=True)]
                        turned.append(max(cosine(h, aim), 0.0))
                    else:
                        held.append(math.dist(h, h0) / math.hypot(*h0))
            expected += (sum(turned) / len(turned) + WEIGHT * sum(held) / len(held)) / len(read)
    with torch.no_grad():
        assert float(loss(learned, batch)) == pytest.approx(expected, rel=1e-6)


def test_the_first_gradient_is_large_enough_to_be_the_same_in_parts():
    """Without the turn it would be rounding noise, which AdamW makes as large as any other gradient."""
    model, batch = tiny_model("llama").double(), mixed_batch()
    loss = CircuitBreaker(WEIGHT).loss(model, seed=0)
    loss(model, batch).backward()
    whole = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    for row in range(4):
        loss(model, batch.rows(slice(row, row + 1))).backward()
    largest = max(gradient.abs().max() for gradient in whole.values())
    assert largest > 1e-4
    for name, gradient in whole.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=0, atol=1e-9 * float(largest))


def test_retain_rows_teach_nothing_until_the_model_has_moved():
    """The length of a difference of 0 has no gradient there; it must not be NaN."""
    model, batch = tiny_model("llama"), mixed_batch().rows(slice(2, 4))
    loss = CircuitBreaker(WEIGHT).loss(model, seed=0)(model, batch)
    loss.backward()
    assert float(loss) == 0
    assert not any(weight.grad.any() for weight in model.parameters() if weight.grad is not None)


def test_states_that_point_away_are_far_enough():
    model, batch = tiny_model("llama"), mixed_batch().rows(slice(0, 2))
    loss = CircuitBreaker(WEIGHT, depths="1").loss(model, seed=0)
    assert float(loss(model, batch)) > 0.9
    model.get_submodule(blocks(model)[0]).register_forward_hook(lambda module, args, output: -output)
    assert float(loss(model, batch)) == 0


@pytest.mark.parametrize(("depths", "count"), [(None, 2), ("1", 1)])
def test_the_blocks_up_to_the_deepest_stream_learn_and_nothing_else(depths, count):
    model = tiny_model("llama")
    CircuitBreaker(depths=depths).loss(model, 0)
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    first = tuple(f"{block}." for block in blocks(model)[:count])
    assert names == {name for name, _ in model.named_parameters() if name.startswith(first)}


@pytest.mark.parametrize(
    ("depths", "said"),
    [
        ("0", "depths must be within 1 … 2 blocks, got 0"),
        ("1,3", "depths must be within 1 … 2 blocks, got 3"),
        ("one", "depths must be numbers of blocks, such as 10,20, got 'one'"),
        ("", "depths must be numbers of blocks, such as 10,20, got ''"),
    ],
)
def test_depths_that_a_model_does_not_have(depths, said):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=said):
        CircuitBreaker(depths=depths).loss(model, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
