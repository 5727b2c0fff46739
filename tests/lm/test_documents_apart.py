"""Losses and gradients are those of each document alone, whatever else is in its row."""

import copy

import numpy as np
import pytest
import torch

from routed_rl.lm import (
    Batches,
    WholeDocuments,
    document_losses,
    evaluate,
    keeps_apart,
    next_token_loss,
    text_corpus,
    token_losses,
)
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from routed_rl.unlearning import SUPPRESSORS, ForgetAndRetain
from tests.lm.tiny_models import ALONE, FAMILIES, MIXTURES, tiny_model
from tests.unlearning.questions import PAIRED

TOKENIZER = stories_tokenizer()
SIZES = np.random.default_rng(0).integers(1, 38, 30)
TEXTS = [
    " ".join(story.text.split()[:size]) for story, size in zip(generate_stories(30, 0), SIZES.tolist(), strict=True)
]
CORPUS = text_corpus(TOKENIZER, TEXTS[:10], TEXTS[10:], allow_overlap=True)
ALL = np.arange(len(TEXTS))


def of_transformers(model, document):
    """Return the loss that transformers computes of one document."""
    tokens = torch.from_numpy(CORPUS.tokens[slice(*CORPUS.starts[document : document + 2])].astype(np.int64))[None]
    return model(input_ids=tokens, labels=tokens).loss.item()


@pytest.mark.parametrize("at_once", [1, 100, 4096])
def test_the_loss_of_documents_is_that_of_transformers(at_once, monkeypatch):
    monkeypatch.setattr("routed_rl.lm.batches.TOKENS_AT_ONCE", at_once)
    model = tiny_model("llama").double()
    found = document_losses(model, WholeDocuments(CORPUS, ALL))
    assert found == pytest.approx([of_transformers(model, document) for document in ALL], abs=1e-5)
    targets = np.diff(CORPUS.starts) - 1
    assert evaluate(model, WholeDocuments(CORPUS, ALL)).mean() == pytest.approx(np.average(found, weights=targets))


def gradient(model, batches):
    for batch in batches.epoch():
        next_token_loss(model, batch).backward()
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ALONE])
def test_the_gradient_of_packed_documents_is_that_of_a_row_each(family):
    """In double precision, which fast experts do not have; windows of attention are shorter than a row."""
    options = {"sliding_window": 8} if family in ("gemma2", "gemma3_text", "mistral") else {}
    if family in MIXTURES:
        options["experts_implementation"] = "eager"
    model = tiny_model(family, **options).double()
    assert keeps_apart(model)
    apart, packed = (gradient(model, Batches(CORPUS, ALL, 40, 1, pack=pack)) for pack in (False, True))
    assert Batches(CORPUS, ALL, 40, 1).steps_per_epoch < 0.8 * len(ALL)
    torch.testing.assert_close(packed, apart, rtol=0, atol=1e-6 * float(apart.abs().max()))


@pytest.mark.parametrize("kind", [*ALONE, "bloom"])
def test_models_that_cannot_keep_documents_apart_are_noticed(kind):
    model = tiny_model(kind, **({"n_layer": 2, "n_head": 2} if kind == "bloom" else {})).train()
    assert not keeps_apart(model) and model.training


@pytest.mark.parametrize("name", sorted(set(SUPPRESSORS) - {"repnoise", "sam", *PAIRED}))
def test_a_suppressor_sees_examples_not_rows(name):
    """Its loss is the same for packed documents and for a row each. RepNoise compares rows; SAM is another's loss.

    Methods that teach another answer never pack documents.
    """
    method = SUPPRESSORS[name](**({"depth": 1} if name == "rmu" else {}))
    model = tiny_model("llama").double()
    with torch.no_grad():
        trained = copy.deepcopy(model)
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        losses = []
        for pack in (True, False):
            sets = [Batches(CORPUS, of, 40, 1, pack=pack) for of in (ALL[:10], ALL[10:])]
            labels = CORPUS.to_forget
            sets = [Batches(CORPUS, of.documents, 40, of.steps_per_epoch, None, labels, pack) for of in sets]
            losses.append(float(method.loss(copy.deepcopy(model), 0)(trained, ForgetAndRetain(*sets).batch(0))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_documents_longer_than_a_model_reads_are_measured_in_windows():
    model = tiny_model("gpt2", n_positions=20)
    found = document_losses(model, WholeDocuments(CORPUS, ALL))
    totals = np.zeros(len(ALL))
    for batch, numbers in WholeDocuments(CORPUS, ALL).batches(20):
        assert batch.tokens.shape[1] <= 20
        np.add.at(totals, numbers, token_losses(model, batch).sum(dim=1).detach().numpy())
    assert found == pytest.approx(totals / (np.diff(CORPUS.starts) - 1), rel=1e-5)
