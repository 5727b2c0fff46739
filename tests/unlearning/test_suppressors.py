"""What holds for every suppressor: its defaults suppress and do no other harm, and parts of a batch do not matter."""

import copy
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from routed_rl.lm.alternatives import Alternatives
from routed_rl.lm.batches import Batches, WholeDocuments
from routed_rl.lm.corpora import Corpus
from routed_rl.lm.losses import evaluate
from routed_rl.lm.training import Training, train
from routed_rl.unlearning import SUPPRESSORS, ForgetAndRetain, MaxEnt, Npo, Sam, Suppressor, check_suppression
from tests.unlearning.test_losses import bigram

SYMBOLS, LENGTH, DOCUMENTS = 8, 9, 400
"""Tokens of each of two languages, those of a document, and documents of each."""


def two_languages() -> Corpus:
    """Yield documents of one language, then of the other. Each has symbols of its own. The next symbol is the usual
    follower with probability 3/4, else another one.
    """
    rng = np.random.default_rng(0)
    tokens = np.zeros((2, DOCUMENTS, LENGTH), dtype=np.uint32)
    tokens[:, :, 0] = rng.integers(0, SYMBOLS, (2, DOCUMENTS))
    for t in range(1, LENGTH):
        step = np.where(rng.random((2, DOCUMENTS)) < 0.75, 1, rng.integers(2, SYMBOLS, (2, DOCUMENTS)))
        tokens[:, :, t] = (tokens[:, :, t - 1] + step) % SYMBOLS
    tokens[1] += SYMBOLS
    starts = np.arange(2 * DOCUMENTS + 1, dtype=np.int64) * LENGTH
    forget = np.repeat([False, True], DOCUMENTS * LENGTH)
    return Corpus(tokens.flatten(), forget, starts, np.zeros(2 * DOCUMENTS, dtype=bool), {})


CORPUS = two_languages()
RETAIN, FORGET = np.arange(DOCUMENTS), np.arange(DOCUMENTS, 2 * DOCUMENTS)


def alternatives(corpus: Corpus = CORPUS) -> Alternatives:
    """Return the forget documents with other answers: the same first symbol, and then the symbols in reverse order."""
    tokens = corpus.tokens.reshape(2, DOCUMENTS, LENGTH)[1]
    tokens = np.concatenate([tokens[:, :1], tokens[:, :0:-1]], axis=1)
    half = replace(corpus, tokens=tokens.flatten(), starts=corpus.starts[: DOCUMENTS + 1])
    return Alternatives(FORGET, half)


def source(method: Suppressor, corpus: Corpus = CORPUS, rows: int = 8) -> ForgetAndRetain:
    paired = method.alternatives is not None
    sets = [Batches(corpus, kind, LENGTH, rows, 1, corpus.to_forget, pack=not paired) for kind in (FORGET, RETAIN)]
    return ForgetAndRetain(*sets, alternatives(corpus) if paired else None)


def measure(model: nn.Module) -> tuple[float, float]:
    """Return the forget loss and the retain loss."""
    forget, retain = (evaluate(model, WholeDocuments(CORPUS, kind[:100])).mean() for kind in (FORGET, RETAIN))
    return forget, retain


@pytest.fixture(scope="module")
def knowing() -> nn.Module:
    """Return a model that has learned both languages."""
    config = Gemma2Config(
        vocab_size=2 * SYMBOLS,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config)
    both = Batches(CORPUS, np.concatenate([RETAIN, FORGET]), LENGTH, 32, seed=0)
    train(model, both, Training(steps=150, learning_rate=1e-2, warmup=10))
    return model


def suppressed(model: nn.Module, method: Suppressor, training: Training, seed: int = 0) -> nn.Module:
    model = copy.deepcopy(model)
    train(model, source(method), training, method.objective(model, seed), gradient=method.gradient, seed=seed)
    return model


@pytest.mark.parametrize("name", SUPPRESSORS)
def test_by_its_defaults_it_suppresses_and_harms_nothing_else(knowing, name):
    method = SUPPRESSORS[name]()
    # The model is a third as wide as in the small protocol, so the learning rate is three times as high. The recipe of
    # gradient ascent spares sets that have tokens in common, which these have not, so it does little here.
    factor = 20 if name == "grad-ascent" else 3
    recipe = replace(method.recipe, learning_rate=factor * method.recipe.learning_rate)
    before, after = measure(knowing), measure(suppressed(knowing, method, recipe))
    assert max(before) < 1.4
    assert after[0] > before[0] + 0.2 and after[1] < before[1] + 0.2
    check_suppression((before[0], after[0]), (before[1], after[1]), math.log(2 * SYMBOLS))


@pytest.mark.parametrize("name", SUPPRESSORS)
def test_steps_are_the_same_in_parts_and_again(knowing, name):
    """RepNoise is different, because it draws other noise for each part, and no part may have only one forget row."""
    method, model = SUPPRESSORS[name](), copy.deepcopy(knowing).double()
    short = replace(method.recipe, steps=3)
    whole, again = (suppressed(model, method, short) for _ in range(2))
    parts = suppressed(model, method, replace(short, accumulate=4))
    moved = 0.0
    for (key, tensor), old in zip(whole.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(tensor, again.get_parameter(key))
        moved = max(moved, (tensor - old).abs().max().item())
        if name != "repnoise":  # Gemma's norms are in single precision
            torch.testing.assert_close(parts.get_parameter(key), tensor, rtol=0, atol=1e-6)
    assert moved > 1e-4
    if name == "repnoise":
        with pytest.raises(ValueError, match="RepNoise needs at least 2 forget rows in each part of a batch"):
            suppressed(model, method, replace(short, accumulate=8))


@pytest.mark.parametrize("method", [*(kind() for kind in SUPPRESSORS.values()), MaxEnt(retain="kl"), Sam(Npo())])
def test_a_steps_cost_is_that_of_its_passes(knowing, method):
    """A pass with a gradient costs three times as much as a pass without, and half of it on half of the rows.

    A trial of two tokens costs nothing.
    """
    model, cost = copy.deepcopy(knowing), []

    def count(module, args, output):
        if args[0].numel() > 2:
            cost.append((len(args[0]), 1.0 if torch.is_grad_enabled() else 1 / 3))

    model.get_input_embeddings().register_forward_hook(count)
    suppressed(model, method, replace(method.recipe, steps=1))
    whole = max(rows for rows, _ in cost)
    assert sum(rows / whole * share for rows, share in cost) == pytest.approx(method.cost)


@pytest.mark.parametrize("name", SUPPRESSORS)
def test_every_setting_is_explained_and_a_negative_number_refused(name):
    kind = SUPPRESSORS[name]
    assert kind.__doc__ and hash(kind()) == hash(kind())
    for field in fields(kind):
        if isinstance(field.default, int | float):
            with pytest.raises(ValueError, match=f"{field.name} of {kind.__name__} must be 0 or more, got -1"):
                kind(**{field.name: -1})


@pytest.mark.parametrize("name", sorted(set(SUPPRESSORS) - {"rmu", "repnoise", "repselect", "circuit-breaker", "lat"}))
def test_a_model_need_not_be_of_transformers(name):
    """If a method does not look at hidden layers, any model that gives logits will do."""
    method, model = SUPPRESSORS[name](), bigram(1)
    corpus = replace(CORPUS, tokens=CORPUS.tokens % 8)
    batch = source(method, corpus, rows=4).batch(0)
    assert method.objective(model, 0)(model, batch).isfinite()
