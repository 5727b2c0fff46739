"""A benchmark with every field that scores use, and a model that learns it in seconds."""

from itertools import product

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from routed_rl.lm import Batches, Training, text_corpus, train, train_tokenizer
from routed_rl.lm.documents import Document
from routed_rl.unlearning.benchmarks import Benchmark, BenchmarkKind, Example

CITIES, THINGS = ["Oslo", "Rome", "Lima", "Kyiv"], ["boat", "lamp", "coat", "ring"]
FIRST, LAST = ["Ann", "Bob", "Cid", "Dea", "Eli", "Fay"], ["Ash", "Bell", "Cobb", "Dale"]


def person(name, city, thing):
    """A question about a person's city, and a text about a thing."""
    others = [other for other in CITIES if other != city]
    question = Example(
        f"Where does {name} live?",
        f"{name} lives in {city}.",
        paraphrases=(f"The home of {name} is {city}.",),
        perturbed=tuple(f"The home of {name} is {other}." for other in others),
        choices=tuple(f"{name} lives in {option}." for option in (city, *others)),
        key=city,
    )
    text = Example(f"{name} went out", f" and bought a {thing} in {city}.", chat=False)
    return question, text


def small_benchmark():
    rng = np.random.default_rng(0)
    names = [f"{first} {last}" for first, last in product(FIRST, LAST)]
    rng.shuffle(names)
    of = {"forget": names[:8], "retain": names[8:16], "holdout": names[16:]}
    sets = {}
    for kind, known in of.items():
        # each city and thing twice, so that a model cannot guess by what is frequent
        both = [
            person(*facts)
            for facts in zip(
                known, rng.permutation(CITIES * 2).tolist(), rng.permutation(THINGS * 2).tolist(), strict=True
            )
        ]
        sets[kind], sets[f"{kind}_texts"] = map(tuple, zip(*both, strict=True))
    return Benchmark(*(rows(sets, kind) for kind in ("forget", "retain")), sets)


def rows(sets, kind):
    """The documents: questions with answers in both forms, and texts."""
    questions = [example.row(answer) for example in sets[kind] for answer in (example.answer, *example.paraphrases)]
    return [*questions, *(example.row() for example in sets[f"{kind}_texts"])]


def small_tokenizer(benchmark):
    return train_tokenizer((Document(text) for text in BenchmarkKind.documents(benchmark)), 300)


def small_model(tokenizer, seed=0, layers=2, **options):
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def learned(tokenizer, benchmark, kinds, steps):
    corpus = text_corpus(tokenizer, benchmark.forget, benchmark.retain)
    documents = np.concatenate([corpus.documents("train", kind) for kind in kinds])
    model = small_model(tokenizer)
    train(model, Batches(corpus, documents, 32, 8, 0), Training(steps=steps, learning_rate=6e-3), seed=0)
    return model.eval()
