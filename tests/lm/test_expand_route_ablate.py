"""Expand, route, ablate, repair in four calls, on the user's own model and texts."""

import doctest

import pytest
import torch

import routed_rl.lm.texts
from routed_rl.lm import ablate, evaluate, expand, repair, route, split_by_words, text_corpus
from routed_rl.lm.batches import WholeDocuments
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from tests.lm.tiny_models import tiny_model

TOPIC = next(story.topic for story in generate_stories(1, 0))
STORIES = list(generate_stories(300, 1))
FORGET = [story.text for story in STORIES if story.topic == TOPIC]
RETAIN = [story.text for story in STORIES if story.topic != TOPIC]
SMALL = {"batch_size": 8, "length": 40, "progress": False}


def losses(model, tokenizer):
    corpus = text_corpus(tokenizer, FORGET, RETAIN)
    return [
        evaluate(model, WholeDocuments(corpus, corpus.documents("train", kind))).mean() for kind in ("forget", "retain")
    ]


def test_the_topic_goes_with_the_new_units():
    """At ablation the forget loss rises more than the retain loss. Repair lowers the retain loss."""
    tokenizer, model = stories_tokenizer(), tiny_model("llama", hidden_size=32)
    expansion = expand(model, [0, 1], 16, seed=0)
    route(model, expansion, tokenizer, FORGET, RETAIN, steps=150, learning_rate=1e-2, **SMALL)
    routed = losses(model, tokenizer)
    ablate(model, expansion)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in tiny_model("llama", hidden_size=32).named_parameters()
    }
    ablated = losses(model, tokenizer)
    assert ablated[0] - routed[0] > ablated[1] - routed[1] + 0.1
    repaired = repair(model, tokenizer, RETAIN[:64], learning_rate=3e-3, progress=False)
    assert losses(repaired, tokenizer)[1] < ablated[1] == losses(model, tokenizer)[1]


@pytest.mark.parametrize("mode", ["activation", "parameter", "forward"])
@pytest.mark.parametrize("family", ["gpt2", "phi3", "opt"])
def test_a_model_is_routed_repeatably(family, mode):
    tokenizer, made = stories_tokenizer(), []
    for _ in range(2):
        model = tiny_model(family)
        expansion = expand(model, [0], 4, seed=0)
        route(model, expansion, tokenizer, FORGET, RETAIN, mode=mode, steps=2, **SMALL)
        ablate(model, expansion)
        made.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*made)


def test_texts_are_split_by_words():
    assert doctest.testmod(routed_rl.lm.texts) == (0, 1)
    rows = [{"text": "A Bank."}, {"text": "A bench."}]
    assert split_by_words(rows, ["bank"]) == (["A Bank."], ["A bench."])
    with pytest.raises(ValueError, match="texts has no documents"):
        split_by_words([], ["bank"])


def test_repair_needs_documents_to_select_by():
    with pytest.raises(ValueError, match=r"at least two documents, .*, got 1"):
        repair(tiny_model("llama"), stories_tokenizer(), RETAIN[:1])
