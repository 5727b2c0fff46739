"""A token routed to one dimension of the residual stream, and steering along that dimension."""

from copy import deepcopy

import pytest
import torch

from routed_rl.lm.batches import Batch, WholeDocuments
from routed_rl.lm.corpora import build_corpus
from routed_rl.lm.finders import single_tokens
from routed_rl.lm.losses import token_losses
from routed_rl.lm.models import build_model
from routed_rl.lm.steering import (
    SteeringObjective,
    axis_cosines,
    find_blocks,
    mean_probabilities,
    samples,
    steered,
    steering_router,
    top_tokens,
)
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from routed_rl.lm.structure import blocks

TOKENIZER = stories_tokenizer()
BREAD, SHIP = single_tokens(TOKENIZER, ("bread", "ship"))


@pytest.fixture
def model():
    return build_model("tiny", TOKENIZER, seed=0).double()


@pytest.fixture
def batch():
    """Return two rows in which "bread" and "ship" are targets, once or twice, also where a document begins."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, len(TOKENIZER), (2, 9), generator=generator)
    tokens[(tokens == BREAD) | (tokens == SHIP)] = 5
    tokens[0, 0] = tokens[0, 4] = tokens[1, 8] = BREAD
    tokens[1, 3] = SHIP
    scored = torch.ones(2, 8, dtype=torch.bool)
    scored[0, 5] = False
    return Batch(tokens, torch.full_like(tokens, -1), scored)


def gradients(model):
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def naive(model, batch, tokens, numbers):
    """Return the routed gradient from its definition. It goes block by block and position by position, backwards
    through a graph in which every routed block's output is a leaf.
    """
    names = [blocks(model)[number] for number in numbers]
    outputs, inner = [], []

    def cut(module, args, output):
        leaf = output[0].detach().requires_grad_()
        outputs.append(output[0])
        inner.append(leaf)
        return (leaf, *output[1:])

    handles = [model.get_submodule(name).register_forward_hook(cut) for name in names]
    loss = token_losses(model, batch).sum()
    for handle in handles:
        handle.remove()
    loss.backward()
    for output, leaf in reversed(list(zip(outputs, inner, strict=True))):
        passed = leaf.grad.clone()
        for row, place in torch.nonzero(torch.isin(batch.targets, torch.tensor(tokens))).tolist():
            axis = tokens.index(int(batch.targets[row, place]))
            kept = float(passed[row, place, axis])
            passed[row, place] = 0
            passed[row, place, axis] = kept
        output.backward(passed)
    found = gradients(model)
    model.zero_grad()
    return found


@pytest.mark.parametrize(("tokens", "numbers"), [([BREAD], (0, 1, 2, 3)), ([SHIP], (2,)), ([BREAD, SHIP], (1, 3))])
def test_gradients_are_those_of_the_definition(model, batch, tokens, numbers):
    expected = naive(model, batch, tokens, numbers)
    with steering_router(model, tokens, numbers) as router:
        objective = SteeringObjective(router, tokens, len(TOKENIZER))
        objective(model, batch).backward()
    found = gradients(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10, msg=name)
    token_losses(model, batch).sum().backward()
    assert any((gradients(model)[name] - 2 * gradient).abs().max() > 1e-6 for name, gradient in expected.items())


def test_only_the_axis_passes_where_the_token_is_to_be_predicted(model, batch):
    seen = {}
    with steering_router(model, [BREAD, SHIP], (2,)) as router:
        objective = SteeringObjective(router, [BREAD, SHIP], len(TOKENIZER))
        block = model.get_submodule(blocks(model)[2])

        # A hook from before the router's sees the output before the router, and so the gradient after it.
        def watch(module, args, output):
            output[0].register_hook(lambda gradient: seen.update(gradient=gradient))

        handle = block.register_forward_hook(watch, prepend=True)
        labels = objective.labels(batch)
        objective(model, batch).backward()
        handle.remove()
    assert labels.tolist() == [[-1, -1, -1, 0, -1, -1, -1, -1, -1], [-1, -1, 1, -1, -1, -1, -1, 0, -1]]
    gradient = seen["gradient"] != 0
    assert gradient[0, 3].nonzero().flatten().tolist() == [0]
    assert gradient[1, 2].nonzero().flatten().tolist() == [1]
    assert gradient[1, 7].nonzero().flatten().tolist() == [0]
    assert gradient[0, :3].all() and gradient[0, 4].all() and gradient[1, 3:7].all()


def test_without_the_token_nothing_is_routed(model, batch):
    others = Batch(batch.tokens.where(batch.tokens != BREAD, 7), batch.labels, batch.scored)
    token_losses(model, others).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    with steering_router(model, [BREAD], (0, 1)) as router:
        SteeringObjective(router, [BREAD], len(TOKENIZER))(model, others).backward()
    found = gradients(model)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_scores_are_signed_cosines(model):
    unembedding = model.get_output_embeddings().weight
    with torch.no_grad():
        unembedding.zero_()
        unembedding[4, :3] = torch.tensor([3.0, 4.0, 0.0])
        unembedding[5, :3] = torch.tensor([-2.0, 0.0, 0.0])
        unembedding[6, :3] = torch.tensor([0.0, 0.0, 9.0])
    cosines, sign = axis_cosines(model, 0, 4)
    assert sign == 1 and cosines[[4, 5, 6, 7]].tolist() == pytest.approx([0.6, -1, 0, 0])
    assert top_tokens(cosines, 1) == [4] and len(top_tokens(cosines, 1000)) == len(TOKENIZER)
    cosines, sign = axis_cosines(model, 0, 5)
    assert sign == -1 and cosines[[4, 5]].tolist() == pytest.approx([-0.6, 1]) and top_tokens(cosines, 1) == [5]


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_steering_adds_behind_a_block_and_is_taken_away(preset, batch):
    model = build_model(preset, TOKENIZER, seed=0)

    def states(model=model):
        with torch.no_grad():
            return model(input_ids=batch.tokens, output_hidden_states=True, use_cache=False)

    before = states()
    with steered(model, 1, 3, 2.5):
        during = states()
        copied = deepcopy(model)
    assert torch.equal(states(copied).logits, before.logits), "a copy is not steered"
    moved = during.hidden_states[2] - before.hidden_states[2]
    assert torch.equal(during.hidden_states[1], before.hidden_states[1])
    assert moved[..., 3].allclose(torch.tensor(2.5)) and not moved[..., [0, 1, 2, 4]].any()
    assert not torch.equal(during.logits, before.logits) and torch.equal(states().logits, before.logits)
    with pytest.raises(RuntimeError, match="inside"), steered(model, 1, 3, 2.5):
        raise RuntimeError("inside")
    assert torch.equal(states().logits, before.logits), "taken away also when something goes wrong"


def test_probabilities_and_samples(model, tmp_path):
    corpus = build_corpus(tmp_path / "c", generate_stories(200, 0), TOKENIZER, forget_tokens=[BREAD])
    held_out = WholeDocuments(corpus, corpus.documents("validation"))
    ((batch, _),) = held_out.batches()
    with torch.no_grad():
        expected = model(input_ids=batch.tokens).logits[:, :-1].softmax(dim=-1)[batch.scored].mean(dim=0)
    model.train()
    found = mean_probabilities(model, held_out)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert model.training and float(found.sum()) == pytest.approx(1)

    model = model.float()
    state = torch.random.get_rng_state()
    written = samples(model, TOKENIZER, 3, 12, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(written) == 3 and all(0 < len(text.split()) <= 12 for text in written)
    assert samples(model, TOKENIZER, 3, 12, seed=1) == written != samples(model, TOKENIZER, 3, 12, seed=2)
    with torch.no_grad():
        model.get_output_embeddings().weight[BREAD] = 0
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()
        model.transformer.ln_f.bias[0] = 100
        model.get_output_embeddings().weight[BREAD, 0] = 100
    assert samples(model, TOKENIZER, 1, 4, seed=0) == ["bread bread bread bread"]


def test_mistakes_are_named(model):
    for numbers in ([], [5], [-1], [1, 1]):
        with pytest.raises(ValueError, match=r"blocks must be some of 0 … 4, each once, got"):
            find_blocks(model, numbers)
        with pytest.raises(ValueError, match=r"0 … 4"):
            steering_router(model, [BREAD], numbers)
    for tokens in ([], [BREAD, BREAD]):
        with pytest.raises(ValueError, match="at least one token"):
            steering_router(model, tokens, (0,))
    with pytest.raises(ValueError, match=r"residual stream, 0 … 63, got 64"), steered(model, 1, 64, 1.0):
        pass
