"""Generated corpora: every fact is right, and each language has the statistics that it should have."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from routed_rl.lm import (
    FORGOTTEN,
    WholeDocuments,
    arithmetic_tokenizer,
    build_corpus,
    exact_match,
    find_topic,
    generate_arithmetic,
    generate_languages,
    language_tokenizer,
)
from routed_rl.lm.languages import LENGTH, SUCCESSORS


def test_every_fact_is_right_and_there_once():
    facts = [document.text for document in generate_arithmetic()]
    assert len(facts) == len(set(facts)) == 4575 and {len(fact) for fact in facts} == {10}
    compute = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for fact in facts:
        a, operation, b, answer = int(fact[:3]), fact[3], int(fact[4:6]), int(fact[:6:-1])
        assert fact[6] == "=" and compute[operation](a, b) == answer and (operation != "/" or a % b == 0)
    assert Counter(fact[3] for fact in facts) == {"+": 2500, "-": 1275, "*": 400, "/": 400}
    topics = {(document.text[3], document.topic) for document in generate_arithmetic()}
    assert topics == {("+", "addition"), ("-", "addition"), ("*", "multiplication"), ("/", "multiplication")}


@pytest.mark.parametrize("shared", [False, True])
def test_a_language_is_of_pairs_with_four_successors(shared):
    texts = list(generate_languages(600, seed=1, shared=shared))
    assert [text.topic for text in texts] == [None, FORGOTTEN] * 300
    alphabets = []
    for kind in (None, FORGOTTEN):
        of_kind = [text.text for text in texts if text.topic == kind]
        if shared:
            assert {text[0] for text in of_kind} == {"<" if kind is None else ">"}
            of_kind = [text[1:] for text in of_kind]
        assert {len(text) for text in of_kind} == {LENGTH}
        alphabets.append(set("".join(of_kind)))
        followers: dict[str, Counter[str]] = {}
        for text in of_kind:
            for pair, follower in zip(map("".join, itertools.pairwise(text)), text[2:], strict=False):
                followers.setdefault(pair, Counter())[follower] += 1
        assert max(map(len, followers.values())) <= 4
        ranked = [sorted(found.values(), reverse=True) for found in followers.values()]
        total = np.array([sum(found) for found in zip(*(row + [0] * (4 - len(row)) for row in ranked), strict=True)])
        np.testing.assert_allclose(total / total.sum(), SUCCESSORS, atol=0.05)
    assert (alphabets[0] == alphabets[1]) == shared and all(len(alphabet) == 24 for alphabet in alphabets)
    assert shared or not alphabets[0] & alphabets[1]
    assert -sum(p * math.log(p) for p in SUCCESSORS) == pytest.approx(1.11, abs=5e-4)


def test_texts_are_the_same_each_time_and_others_with_another_seed():
    first, again, other = (list(generate_languages(20, seed)) for seed in (0, 0, 1))
    assert first == again != other and list(generate_arithmetic()) == list(generate_arithmetic())


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [(arithmetic_tokenizer(), "012*07=480"), (language_tokenizer(), "abψω"), (language_tokenizer(True), ">ab<")],
)
def test_every_character_is_a_token(tokenizer, text):
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) == len(text) and tokenizer.decode(tokens) == text and tokenizer.bos_token_id not in tokens
    assert tokenizer("?")["input_ids"] == [tokenizer.bos_token_id]


class Copies(nn.Module):
    """A model that looks up all its predictions for a row in a table, by the row's first 8 tokens."""

    def __init__(self, answers, vocabulary):
        super().__init__()
        self.answers, self.weight = answers, nn.Parameter(torch.zeros(1))
        self.vocabulary = vocabulary

    def forward(self, input_ids, use_cache):
        rows = [self.answers[tuple(row[:8].tolist())] for row in input_ids]
        return CausalLMOutput(logits=nn.functional.one_hot(torch.tensor(rows), self.vocabulary).float())


def test_exact_match_counts_documents_whose_answers_are_all_right(tmp_path):
    tokenizer = arithmetic_tokenizer()
    corpus = build_corpus(
        tmp_path / "c", itertools.islice(generate_arithmetic(), 2600, None), tokenizer, find_topic("multiplication"),
        validation=None,
    )  # fmt: skip
    assert not corpus.validation.any()
    documents = np.arange(20)
    batches = WholeDocuments(corpus, documents)
    ((whole, _),) = batches.batches()
    right = {tuple(row[:8].tolist()): [*row[1:].tolist(), 0] for row in whole.tokens}
    model = Copies(right, len(tokenizer)).train()
    assert exact_match(model, batches) == 1.0 and model.training
    for i, row in enumerate(list(right)[:5]):
        right[row][10 - 3 + i % 3] = 15  # one of the three digits is "="
    assert exact_match(model, batches) == 0.75
    for row in list(right)[5:]:
        right[row][0] = 15  # tokens before the answer do not count
    assert exact_match(model, batches) == 0.75
