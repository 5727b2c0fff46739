"""Peak memory of the stages of unlearning on a model of 0.1 B parameters, beside what the library computes for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from routed_rl.experiments.benchmarks.distillation import peak_memory
from routed_rl.lm.corpora import Corpus
from routed_rl.unlearning import attack, memory, undo, unlearn
from routed_rl.unlearning.memory import Stage

WIDTH, LAYERS, VOCABULARY = 768, 12, 32768
ROWS, LENGTH, STEPS = 4, 128, 2
CASES: dict[str, tuple[Stage, dict[str, Any]]] = {
    "suppress, all weights": ("suppress", {}),
    "suppress, all weights, checkpointing": ("suppress", {"gradient_checkpointing": True}),
    "suppress, rank 16": ("suppress", {"rank": 16}),
    "suppress, rank 16, checkpointing": ("suppress", {"rank": 16, "gradient_checkpointing": True}),
    "distil, all weights": ("distil", {}),
    "distil, rank 16": ("distil", {"rank": 16}),
    "attack, all weights": ("attack", {}),
    "attack, rank 16": ("attack", {"rank": 16}),
}
"""Stages and their options."""


def calls() -> int:
    """How many measurements :func:`measure` makes."""
    return len(CASES)


def measure(tick: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Peak of the tensors of each stage, two steps long, measured and computed, in megabytes.

    It is measured from the allocations of torch on the CPU, which do not depend on the machine's load.
    """
    model, corpus = make_model(), make_corpus()
    rows = {}
    for name, (stage, options) in CASES.items():
        computed = memory(model, stage, batch_size=ROWS, length=LENGTH, **options).total
        found = weights(model) + peak_memory(partial(run, stage, model, corpus, options))
        rows[name] = {
            "measured_megabytes": found / 2**20,
            "computed_megabytes": computed / 2**20,
            "computed_times_measured": computed / found,
        }
        tick()
    return rows


def run(stage: Stage, model: nn.Module, corpus: Corpus, options: dict[str, Any]) -> None:
    """Do a stage, on full rows."""
    shared = {"batch_size": ROWS, "length": LENGTH, "progress": False, **options}
    if stage == "suppress":
        unlearn(model, None, corpus, steps=STEPS, **shared)
    elif stage == "distil":
        undo(model, None, corpus, steps=STEPS, least=STEPS, within=1e9, **shared)
    else:
        attack(model, None, corpus, learning_rates=(1e-5,), steps=STEPS, measured=(STEPS,), **shared)


def make_model() -> nn.Module:
    """A new model of the Llama family."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=8 * WIDTH // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=max(1, WIDTH // 64),
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def make_corpus() -> Corpus:
    """Random documents of one row each, enough for a few steps and for a batch of measurements; half are to forget."""
    documents = 2 * max(2 * ROWS, 4096 // LENGTH)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, documents * LENGTH)
    forget = np.repeat(np.arange(documents) % 2 == 0, LENGTH)
    starts = np.arange(documents + 1) * LENGTH
    return Corpus(tokens, forget, starts, np.zeros(documents, bool), {})


def weights(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
