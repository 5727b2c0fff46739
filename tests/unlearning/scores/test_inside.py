"""What is read inside a model: states, the logit lens, patches; and the scores that are made of them."""

import doctest
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from routed_rl.lm.stories import stories_tokenizer
from routed_rl.unlearning.benchmarks import Benchmark
from routed_rl.unlearning.scores import SCORES, Reader, depth, erased, lens, probe
from routed_rl.unlearning.scores.inside import last_states, losses_by_patching
from routed_rl.unlearning.scores.inside import lens as read_lens
from routed_rl.unlearning.scores.probe import probe_accuracy
from tests.lm.tiny_models import tiny_model
from tests.unlearning.scores.small_benchmark import small_benchmark, small_model, small_tokenizer

BENCHMARK = small_benchmark()
TOKENIZER = small_tokenizer(BENCHMARK)
EXAMPLES = BENCHMARK.sets["forget"][:5]


def reader(seed=0, **options):
    return Reader(small_model(TOKENIZER, seed, layers=3), TOKENIZER, BENCHMARK, **options)


def row(of):
    return torch.tensor(of.tokens)[None]


@pytest.mark.parametrize(
    "module", [inspect.getmodule(depth), lens, probe], ids=lambda module: module.__name__.rpartition(".")[2]
)
def test_the_examples_in_docstrings_hold(module):
    failed, tried = doctest.testmod(module)
    assert not failed and tried


@pytest.mark.parametrize("at_once", [1, 4096])
def test_last_states_are_those_of_one_row_at_a_time(at_once):
    """The last one of transformers' hidden states is after the final norm."""
    read = reader(tokens_at_once=at_once)
    answers = [example.perturbed[0] for example in EXAMPLES]
    found = last_states(read, EXAMPLES, answers)
    for states, document in zip(found, read.encoded(EXAMPLES, answers), strict=True):
        with torch.no_grad():
            streams = read.model(row(document), output_hidden_states=True).hidden_states
        assert document.tokens[-1] == TOKENIZER.eos_token_id, "the end is left out"
        with torch.no_grad():
            normed = read.model.model.norm(torch.tensor(states[-1]))
        expected = [*(stream[0, -2] for stream in streams[1:-1]), streams[-1][0, -2]]
        for one, other in zip([*map(torch.tensor, states[:-1]), normed], expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 4096])
def test_the_lens_says_what_the_head_says_of_each_stream(at_once):
    read = reader(tokens_at_once=at_once)
    model = read.model
    for layers, document in zip(read_lens(read, EXAMPLES), read.keys(EXAMPLES), strict=True):
        with torch.no_grad():
            streams = model(row(document), output_hidden_states=True).hidden_states
            given = [
                *(model.lm_head(model.model.norm(stream)) for stream in streams[1:-1]),
                model(row(document)).logits,
            ]
        keys = np.flatnonzero(document.scored)
        for tokens, logits in zip(layers, given, strict=True):
            log = logits[0].log_softmax(-1)
            expected = [float(log[key - 1, document.tokens[key]]) for key in keys]
            np.testing.assert_allclose(tokens.log_probability, expected, rtol=0, atol=1e-5)
            assert tokens.ids.tolist() == document.tokens[keys].tolist()


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "opt", "gpt_neox", "mixtral"])
def test_other_families_can_be_read(kind):
    """The last layer of the lens is the model itself, but for Gemma's cap; a patch by itself changes nothing."""
    read = Reader(tiny_model(kind), stories_tokenizer(), BENCHMARK)
    question = [replace(EXAMPLES[0], prompt="a dog", answer="a cat", key="cat")]
    (layers,) = read_lens(read, question)
    (whole,) = read.answers(question)
    at = np.flatnonzero(read.text(whole))[-len(layers[-1].ids) :]
    assert whole.ids[at].tolist() == layers[-1].ids.tolist()
    if kind != "gemma2":
        np.testing.assert_allclose(layers[-1].log_probability, whole.log_probability[at], rtol=0, atol=1e-4)
    np.testing.assert_allclose(losses_by_patching(read, read.model, question), 0, atol=1e-5)


def test_a_patch_of_the_last_block_gives_the_other_models_stream():
    """Both models have the same norm and head here, so then the source itself predicts."""
    target, source = reader(0), reader(1)
    source.model.model.norm, source.model.lm_head = target.model.model.norm, target.model.lm_head
    lost = losses_by_patching(target, source.model, EXAMPLES)
    assert lost.shape == (5, 3) and (np.abs(lost) > 1e-4).all()
    for own, document in zip(lost, target.keys(EXAMPLES), strict=True):
        keys = np.flatnonzero(document.scored)

        def mean(model, document=document, keys=keys):
            with torch.no_grad():
                log = model(row(document)).logits[0].log_softmax(-1)
            return float(torch.stack([log[key - 1, document.tokens[key]] for key in keys]).mean())

        assert own[-1] == pytest.approx(mean(target.model) - mean(source.model), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_depth_is_the_weighted_mean_of_clipped_ratios(seed):
    """The formula of the paper, written out."""
    rng = np.random.default_rng(seed)
    unlearned, retrained = rng.normal(0.5, 1, (2, 6, 4))
    retrained[0] = -1  # an example that the retrained model knows
    shares = []
    for own, other in zip(unlearned, retrained, strict=True):
        layers = [layer for layer in range(4) if other[layer] > 0.05]
        if layers:
            ratios = [other[layer] * min(max(own[layer] / other[layer], 0), 1) for layer in layers]
            shares.append(sum(ratios) / sum(other[layer] for layer in layers))
    assert len(shares) < 6
    assert depth(*erased(unlearned, retrained)) == pytest.approx(sum(shares) / len(shares), abs=1e-6)


def test_depth_is_0_for_the_original_and_1_for_the_retrained_model():
    original, retrained = reader(0), reader(1)
    for read in (original, retrained):
        read.model.lm_head.weight.data *= 40  # so that the facts differ by more than the threshold
    companions = {"original": original, "retrained": retrained}
    score = SCORES["unlearning-depth"]()
    for model, expected in ((original.model, 0.0), (retrained.model, 1.0)):
        numbers = score.examples(Reader(model, TOKENIZER, BENCHMARK, companions=companions))
        assert score.value(numbers) == pytest.approx(expected, abs=1e-5)


def test_a_probe_recognises_what_is_linear_and_guesses_what_is_not():
    rng = np.random.default_rng(0)
    right, groups = np.tile([True, False, False], 40), np.arange(40).repeat(3)
    noise = rng.normal(size=(120, 3))
    linear = noise + 6 * right[:, None]
    assert probe_accuracy(linear, right, groups).mean() > 0.95
    assert 0.3 < probe_accuracy(noise, right, groups).mean() < 0.7


def test_a_probe_is_not_tested_on_questions_that_it_has_seen():
    """Each question has a direction of its own, which says nothing of others."""
    right, groups = np.tile([True, False], 10), np.arange(10).repeat(2)
    states = np.eye(10)[groups] * np.where(right, 1, -1)[:, None]
    assert probe_accuracy(states, right, groups).mean() <= 0.5


def test_a_probe_needs_as_many_questions_as_folds():
    few = replace(BENCHMARK, sets={**BENCHMARK.sets, "forget": BENCHMARK.sets["forget"][:4]})
    score = SCORES["linear-probe"]()
    assert isinstance(few, Benchmark) and score.undefined(BENCHMARK) is None
    assert score.undefined(few) == "fewer than 5 examples of the forget set have perturbed answers"
