"""RMU: its loss compared with the formula, what learns, and the direction that a seed fixes."""

import copy

import pytest
import torch

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch
from routed_rl.lm.structure import blocks, mlp
from routed_rl.unlearning import Rmu
from tests.lm.tiny_models import tiny_model

NORM, WEIGHT = 7.0, 30.0


def value(loss):
    return loss.item()


def mixed_batch():
    """Return two forget rows and two retain rows. Each has targets that are not scored."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 96, (4, 9), generator=generator)
    labels = torch.full_like(tokens, NO_LABEL)
    labels[:2] = FORGET_LABEL
    scored = torch.rand(4, 8, generator=generator) < 0.7
    return Batch(tokens, labels, scored)


def stream(model, tokens, depth):
    """Return the residual stream after some blocks, as transformers gives it. After the last block its norm is left
    out.
    """
    found = []
    handle = model.get_submodule(blocks(model)[depth - 1]).register_forward_hook(
        lambda module, args, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    states = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    if depth < len(blocks(model)):
        assert torch.equal(found[0], states[depth])
    return found[0]


def changed(model):
    """Return the model after it has learned something, so that it differs from the original."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("kind", ["gpt_neo", "llama", "gpt2"])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_loss_is_that_of_a_loop(kind, depth):
    model, batch = tiny_model(kind).double(), mixed_batch()
    loss = Rmu(depth, NORM, WEIGHT).loss(model, seed=3)
    learned = changed(model)
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(16, generator=generator)
    aim = NORM * direction / torch.linalg.vector_norm(direction)
    assert float(torch.linalg.vector_norm(aim)) == pytest.approx(NORM)
    with torch.no_grad():
        now, before = stream(learned, batch.tokens, depth), stream(model, batch.tokens, depth)
        pushed, held = [], []
        for row in range(4):
            for t in range(8):
                if batch.scored[row, t]:
                    aimed_at, distances = (aim, pushed) if row < 2 else (before[row, t], held)
                    pairs = zip(now[row, t].tolist(), aimed_at.tolist(), strict=True)
                    distances.append(sum((x - y) ** 2 for x, y in pairs) / 16)
        assert len(pushed) != len(held)
        expected = sum(pushed) / len(pushed) + WEIGHT * sum(held) / len(held)
    assert value(loss(learned, batch)) == pytest.approx(expected, rel=1e-6)
    # Retain states are held where they were when the objective was made, even if the model has changed since.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert value(loss(learned, batch)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["gpt_neo", "llama", "gpt2"])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_outputs_of_the_first_mlps_learn_all_of_them_and_nothing_else(kind, depth):
    model = tiny_model(kind)
    objective = Rmu(depth, NORM, WEIGHT).objective(model, seed=0)
    expected = {
        f"{mlp(model, layer).consumer}.{name}"
        for layer in range(depth)
        for name, _ in model.get_submodule(mlp(model, layer).consumer).named_parameters()
    }
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected
    objective(model, mixed_batch()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in expected), name
        assert name not in expected or parameter.grad.abs().max() > 0, name


def test_retained_rows_teach_nothing_until_the_model_has_moved():
    model, batch = tiny_model("gpt_neo"), mixed_batch()
    retain = batch.rows(slice(2, 4))
    objective = Rmu(2, NORM, WEIGHT).objective(model, seed=0)
    assert value(objective(model, retain)) == 0
    assert value(objective(model, batch)) == pytest.approx(value(objective(model, batch.rows(slice(0, 2)))))


def test_the_direction_is_a_function_of_the_seed():
    batch, losses = mixed_batch(), []
    for seed in (0, 0, 1):
        model = tiny_model("gpt_neo")
        objective = Rmu(2, NORM, WEIGHT).objective(model, seed)
        torch.manual_seed(len(losses))  # torch's global random numbers are not used
        losses.append([objective(model, batch).item() for _ in range(2)])
    assert losses[0] == losses[1] and losses[0] != losses[2]
    assert all(first == second for first, second in losses), "and it stays the same from step to step"


def test_steps_reach_the_aim():
    """The answer is known: without retain rows, the residual stream moves to the vector that it is pushed to."""
    model, batch = tiny_model("gpt_neo"), mixed_batch().rows(slice(0, 2))
    objective = Rmu(2, 1.0, WEIGHT).loss(model, seed=0)
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], 0.05)
    first = value(objective(model, batch))
    for _ in range(60):
        optimizer.zero_grad()
        objective(model, batch).backward()
        optimizer.step()
    assert value(objective(model, batch)) < 0.2 * first


@pytest.mark.parametrize("depth", [0, 3])
def test_more_blocks_than_there_are(depth):
    model = tiny_model("gpt_neo")
    with pytest.raises(ValueError, match=f"depth must be within 1 … 2 blocks, got {depth}"):
        Rmu(depth, NORM, WEIGHT).loss(model, seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_weights_may_learn():
    model, batch = tiny_model("qwen2"), mixed_batch()
    Rmu(1, NORM, WEIGHT, trained="all").objective(model, seed=0)(model, batch).backward()
    learned = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert "model.embed_tokens.weight" in learned and "model.layers.0.self_attn.q_proj.weight" in learned
    assert not any("layers.1" in name for name in learned), "what comes after has nothing to learn"


def test_an_unknown_model_is_refused_before_it_is_frozen():
    model = tiny_model("bitnet")
    with pytest.raises(ValueError, match=r"no MLP was found in model\.layers\.0: pass projections"):
        Rmu(1, NORM, WEIGHT).loss(model, seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    place = "model.layers.{}.mlp."
    Rmu(1, NORM, WEIGHT, projections=f"{place}gate_proj,{place}up_proj:{place}down_proj").loss(model, seed=0)
    learn = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learn == {"model.layers.0.mlp.down_proj.weight"}


def test_the_experts_of_a_mixture_learn():
    model = tiny_model("mixtral")
    Rmu(1, NORM, WEIGHT).objective(model, seed=0)(model, mixed_batch()).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {f"model.layers.0.mlp.experts.{name}_proj" for name in ("gate_up", "down")}


def test_the_stream_may_be_wider_than_the_embeddings():
    """As OPT-350m's."""
    model, batch = tiny_model("opt-350m"), mixed_batch()
    assert Rmu(2, NORM, WEIGHT).objective(model, seed=0)(model, batch).isfinite()
