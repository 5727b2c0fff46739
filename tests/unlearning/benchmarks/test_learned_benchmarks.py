"""Small models learn the benchmarks that are made here: what full and retrained models know. Seeds are fixed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp

from routed_rl.lm import Batches, build_model, text_corpus, train, train_tokenizer
from routed_rl.lm.documents import Document
from routed_rl.lm.texts import row_length
from routed_rl.unlearning.benchmarks import BENCHMARKS, Benchmark
from routed_rl.unlearning.scores import Knowledge, Reader

MADE_HERE = [name for name, kind in BENCHMARKS.items() if kind.splits and kind.recipe is not None]


class Learned:
    """A benchmark with what models make of it."""

    def __init__(self, name, benchmark=None, **recipe):
        kind = BENCHMARKS[name]
        self.benchmark = benchmark or kind().load()
        self.recipe = replace(kind.recipe, **recipe)
        documents = map(Document, kind.documents(self.benchmark))
        self.tokenizer = train_tokenizer(documents, self.recipe.vocabulary)
        self.corpus = text_corpus(self.tokenizer, self.benchmark.forget, self.benchmark.retain)

    def reader(self, kinds, seed=0):
        """A model that has learned the documents of these kinds."""
        model = build_model(self.recipe.model, self.tokenizer, seed)
        documents = np.concatenate([self.corpus.documents("train", kind) for kind in kinds])
        batches = Batches(self.corpus, documents, row_length(self.corpus, model), self.recipe.batch_size, seed)
        train(model, batches, self.recipe.training, seed=seed)
        return Reader(model, self.tokenizer, self.benchmark)


def knows(reader, name):
    """Share of a set's questions that a model answers rightly."""
    score = Knowledge(of=name)
    return score.value(score.examples(reader))


def chosen(reader, name):
    """Share of a set's questions of which the right choice is the likeliest."""
    return float(np.mean(likelihoods(reader, reader.benchmark.sets[name], "choices").argmax(axis=1) == 0))


def likelihoods(reader, examples, field):
    """The mean log-probability of each answer in a field, for each example."""
    columns = zip(*(getattr(example, field) for example in examples), strict=True)
    read = [reader.answers(examples, answers) for answers in columns]
    return np.array([[tokens.log_probability.mean() for tokens in of] for of in read]).T


def truth_ratios(reader):
    """How likely wrong answers to forget questions are, against the paraphrased right one (TOFU)."""
    examples = reader.benchmark.sets["forget"]
    right, wrong = (np.exp(likelihoods(reader, examples, field)) for field in ("paraphrases", "perturbed"))
    return wrong.mean(axis=1) / right.mean(axis=1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "choice-small")) for name in MADE_HERE]
)
def test_a_model_learns_a_few_examples_and_not_those_that_it_never_reads(name):
    whole = BENCHMARKS[name]().load()
    few = {kind: whole.sets[kind][:8] for kind in ("forget", "retain")}
    rows = {kind: [example.row() for example in of] for kind, of in few.items()}
    training = replace(BENCHMARKS[name].recipe.training, steps=150, warmup=10)
    learned = Learned(name, Benchmark(**rows, sets=few), batch_size=8, training=training)
    full, retrained = learned.reader(("forget", "retain")), learned.reader(("retain",))
    assert knows(full, "forget") >= 0.9
    assert knows(full, "retain") >= 0.9
    assert knows(retrained, "retain") >= 0.9
    assert knows(retrained, "forget") <= 0.4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_tofu_small_is_learned_and_forget_quality_tells_models_apart(seed):
    learned = Learned("tofu-small")
    full, retrained, another = (
        learned.reader(kinds, at)
        for kinds, at in ((("forget", "retain"), seed), (("retain",), seed), (("retain",), (seed + 1) % 3))
    )
    for kept in learned.benchmark.kept:
        assert knows(full, kept) >= 0.9
        assert knows(retrained, kept) >= 0.85
    assert knows(full, "forget") >= 0.9
    assert knows(retrained, "forget") <= 0.2
    assert knows(full, "holdout") <= 0.2
    assert ks_2samp(truth_ratios(full), truth_ratios(another)).pvalue < 1e-3
    assert ks_2samp(truth_ratios(retrained), truth_ratios(another)).pvalue > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_choice_small_is_learned_and_a_retrained_model_guesses(seed):
    learned = Learned("choice-small")
    full, retrained = learned.reader(("forget", "retain"), seed), learned.reader(("retain",), seed)
    assert chosen(full, "forget") >= 0.9
    assert chosen(full, "retain") >= 0.9
    assert chosen(retrained, "retain") >= 0.9
    assert 0.1 <= chosen(retrained, "forget") <= 0.4
    assert 0.1 <= chosen(full, "holdout") <= 0.45


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_muse_small_is_learned_word_by_word(seed):
    learned = Learned("muse-small")
    full, retrained = learned.reader(("forget", "retain"), seed), learned.reader(("retain",), seed)
    for name in ("forget", "retain", "forget_texts", "retain_texts"):
        assert knows(full, name) >= 0.9, name
    assert knows(retrained, "retain") >= 0.9
    assert knows(retrained, "retain_texts") >= 0.9
    assert knows(retrained, "forget") <= 0.2
    assert knows(retrained, "forget_texts") <= 0.1
    assert knows(full, "holdout") <= 0.2
