"""RepNoise: the discrepancy and the loss, compared with loops, and the loss of a part of a batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch
from routed_rl.lm.structure import before_output, blocks, feed_forward
from routed_rl.lm.suppressors.repnoise import squared_mmd
from routed_rl.unlearning import MaxEnt, RepNoise
from tests.lm.tiny_models import tiny_model


def naive_mmd(sample, other):
    """Return the mean kernel within each sample minus that between them, pair by pair."""
    both = [*sample.tolist(), *other.tolist()]

    def distance(x, y):
        return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))

    pairs = [distance(both[i], both[j]) for i in range(len(both)) for j in range(len(both)) if i != j]
    width = sum(pairs) / len(pairs) / 4

    def kernel(x, y):
        return sum(math.exp(-distance(x, y) / (width * 2**i)) for i in range(5))

    def between(xs, ys):
        return sum(kernel(x, y) for x in xs for y in ys) / (len(xs) * len(ys))

    n = len(sample)
    return between(both[:n], both[:n]) + between(both[n:], both[n:]) - 2 * between(both[:n], both[n:])


def normal(shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**20), st.floats(0.01, 100))
def test_the_discrepancy_is_that_of_a_loop(n, m, width, seed, scale):
    sample, other = normal((n, width), seed), scale * normal((m, width), seed + 1)
    assert float(squared_mmd(sample, other)) == pytest.approx(naive_mmd(sample, other), rel=1e-9, abs=1e-9)


def test_the_discrepancy_tells_samples_apart():
    sample = normal((20, 3), 0)
    assert float(squared_mmd(sample, sample)) == pytest.approx(0, abs=1e-12)
    near, far = (float(squared_mmd(sample, normal((20, 3), 1) + shift)) for shift in (0.0, 3.0))
    assert 0 < near < 0.3 * far
    same = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    squared_mmd(same, torch.zeros(3, 2, dtype=torch.float64)).backward()
    assert torch.equal(same.grad, torch.zeros(3, 2, dtype=torch.float64)), "no distance at all is no number's root"
    with pytest.raises(ValueError, match="a discrepancy needs samples of 2 or more, got 1 and 3"):
        squared_mmd(sample[:1], sample[:3])


def pairs_of_rows():
    """Return three pairs of alternating rows. Some tokens of a pair are the same, and some targets are not scored."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 96, (6, 7), generator=generator)
    tokens[1::2, ::3] = tokens[::2, ::3]
    labels = torch.full_like(tokens, NO_LABEL)
    labels[::2] = FORGET_LABEL
    return Batch(tokens, labels, torch.rand(6, 6, generator=generator) < 0.8)


def captured(model, tokens):
    """Return the residual streams, from the embeddings on, the MLPs' outputs, and the logits."""
    streams, mlps, handles = [], [], []
    first, *_ = names = blocks(model)
    handles.append(
        model.get_submodule(first).register_forward_pre_hook(
            lambda module, args, kwargs: streams.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    )
    for layer, name in enumerate(names):
        for hooked, into in ((name, streams), (feed_forward(model, layer).output, mlps)):
            handles.append(
                model.get_submodule(hooked).register_forward_hook(
                    lambda module, args, output, into=into: into.append(
                        (output[0] if isinstance(output, tuple) else output).reshape(*tokens.shape, -1)
                    )
                )
            )
    logits = model(input_ids=tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    assert len(streams) == len(names) + 1 and len(mlps) == len(names)
    return streams, mlps, logits


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "gpt2", "gpt_neox", "opt", "opt-350m", "mixtral"])
@torch.no_grad()
def test_the_loss_is_that_of_a_loop(kind):
    options = {"experts_implementation": "eager"} if kind == "mixtral" else {}  # the fast one has no double precision
    model, batch = tiny_model(kind, **options).double(), pairs_of_rows()
    method = RepNoise(noise_weight=0.3, ascent_weight=0.7)
    torch.manual_seed(5)
    found = float(method.loss(model, 0)(model, batch)) - float(MaxEnt().loss(model, 0)(model, batch))

    streams, mlps, logits = captured(model, batch.tokens)
    differ = [[bool(batch.tokens[2 * i, t] != batch.tokens[2 * i + 1, t]) for t in range(7)] for i in range(3)]

    def ce(logits, first):
        """Return the cross-entropy of rows 0, 2, 4 or 1, 3, 5 where the tokens of a pair differ."""
        losses = []
        for i in range(3):
            row = 2 * i + first
            for t in range(6):
                if batch.scored[row, t] and differ[i][t + 1]:
                    said = logits[row, t]
                    losses.append(float(said.logsumexp(0) - said[batch.tokens[row, t + 1]]))
        return sum(losses) / len(losses)

    torch.manual_seed(5)
    noise = []
    for given_by in mlps:
        drawn, held = torch.randn(3, 7, 16, dtype=torch.float64), given_by[::2].clone()
        for i in range(3):
            for t in range(7):
                if not differ[i][t]:
                    drawn[i, t], held[i, t] = 0.0, 0.0
        noise.append(naive_mmd(held.flatten(1), drawn.flatten(1)))
    last, unembed = model.get_submodule(before_output(model)[0]), model.get_output_embeddings()
    told = ce(logits, 0) + sum(ce(unembed(last(stream)), 0) for stream in streams)
    risen = math.log(1 + told / len(streams))
    assert found == pytest.approx(ce(logits, 1) + 0.3 * sum(noise) / len(noise) - 0.7 * risen, rel=1e-6)


def test_noise_is_a_function_of_the_step_s_seed():
    model, batch = tiny_model("llama"), pairs_of_rows()
    loss, found = RepNoise().loss(model, 0), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(loss(model, batch).item())
    assert found[0] == found[1] != found[2]


@torch.no_grad()
def test_a_part_of_a_batch_counts_as_much_as_it_has_rows():
    model, batch = tiny_model("gpt_neo").double(), pairs_of_rows()
    twice = Batch(*(torch.cat([getattr(batch, name)] * 2) for name in ("tokens", "labels", "scored")))
    loss, alone, maxent = (method.loss(model, 0) for method in (RepNoise(), RepNoise(), MaxEnt()))
    torch.manual_seed(0)
    parts = sum(float(loss(model, twice.rows(slice(*cut)))) for cut in ((0, 6), (6, 12)))
    torch.manual_seed(0)
    expected = sum(float(alone(model, batch) - maxent(model, batch)) for _ in range(2)) / 2
    assert parts == pytest.approx(float(maxent(model, twice)) + expected, rel=1e-9)


@pytest.mark.parametrize(
    ("cut", "message"),
    [((0, 2), "got 1 and 1"), ((0, 3), "got 2 and 1"), ((0, 5), "got 3 and 2"), ((1, 2), "got 0 and 1")],
)
def test_a_part_without_two_pairs_is_refused(cut, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=f"RepNoise needs at least 2 forget rows in each part of a batch.*{message}"):
        RepNoise().loss(model, 0)(model, pairs_of_rows().rows(slice(*cut)))


def test_rows_that_do_not_differ_have_nothing_to_learn_from():
    model, batch = tiny_model("llama"), pairs_of_rows()
    batch.tokens[1::2] = batch.tokens[::2]
    loss = RepNoise(retain_weight=0.0).loss(model, 0)(model, batch)
    assert loss.item() == pytest.approx(MaxEnt(retain_weight=0.0).loss(model, 0)(model, batch).item(), rel=1e-6)
