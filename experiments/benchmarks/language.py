"""Speed of training language models: our loop compared with a bare loop, and routing compared with no routing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from routed_rl.experiments.benchmarks.timing import take_turns
from routed_rl.lm import (
    Batches,
    Corpus,
    EraObjective,
    Training,
    build_model,
    era_weights,
    expand,
    make_optimizer,
    matmul_rate,
    stories_tokenizer,
    train,
    training_flops,
)
from routed_rl.lm.era import TABLE
from routed_rl.routing import GradientRouter

SHAPES = {"tiny": (32, 40), "small": (16, 120)}
"""Batch shape of each preset: rows, and tokens per row."""
STEPS = 5
BARE, OURS, UNROUTED = "a bare loop", "ours", "expanded, not routed"


def calls(repeats: int) -> int:
    """How many measurements :func:`measure` makes."""
    return len(SHAPES) * 5 * (repeats + 1)


def measure(repeats: int, tick: Callable[[], None]) -> dict[str, dict[str, Any]]:
    """Measurements by preset.

    They compare our loop with a bare loop, and an expanded model with and without routing. They also give our
    arithmetic rate as a share of the rate of large matrix products on this machine.
    """
    return {preset: measure_preset(preset, *shape, repeats, tick) for preset, shape in SHAPES.items()}


def measure_preset(
    preset: str,
    rows: int,
    length: int,
    repeats: int,
    tick: Callable[[], None] = lambda: None,
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, Any]:
    """Measure one preset, as in :func:`measure`, with batches of ``rows`` rows of ``length`` tokens."""
    tokenizer = stories_tokenizer()
    rng = np.random.default_rng(0)
    starts = np.arange(0, 40 * max(2000, rows * length * STEPS // 40 + 1) + 1, 40)
    tokens, documents = rng.integers(2, len(tokenizer), starts[-1]), np.arange(len(starts) - 1)
    forget = np.repeat(rng.random(len(documents)) < 0.2, 40)
    corpus = Corpus(tokens, forget, starts, np.zeros(len(documents), dtype=bool), {})
    batches = Batches(corpus, documents, length, rows, 0, corpus.to_forget)
    settings = Training(steps=STEPS, warmup=0, precision=precision)
    plain = build_model(preset, tokenizer, 0).to(device)
    expanded = copy.deepcopy(plain)
    expansion = expand(expanded, range(3), 32, 0)
    weights = era_weights(torch.rand(len(tokenizer)), -0.75)
    cases: dict[str, Callable[[], object]] = {
        BARE: partial(_bare, copy.deepcopy(plain), batches, settings),
        OURS: partial(train, plain, batches, settings),
        UNROUTED: partial(train, copy.deepcopy(expanded), batches, settings),
    }
    for mode in ("activation", "parameter"):
        routed = copy.deepcopy(expanded)
        router = GradientRouter(routed, expansion.sites(mode), TABLE, mode)
        cases[mode] = partial(_routed, router, routed, batches, settings, EraObjective(router, weights))
    measured = take_turns({name: (STEPS, case) for name, case in cases.items()}, repeats, tick)
    flops = training_flops(plain, length) * rows * length * measured[OURS].rate
    return {
        "milliseconds": 1000 * measured[OURS].median,
        "tokens_per_second": rows * length * measured[OURS].rate,
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "times_bare": measured[BARE].median / measured[OURS].median,
        "share_of_matmul_rate": flops
        / matmul_rate(torch.device(device), torch.float32 if precision == "fp32" else torch.bfloat16),
        **{
            f"times_unrouted_{mode}": measured[mode].median / measured[UNROUTED].median
            for mode in ("activation", "parameter")
        },
    }


def _routed(router: GradientRouter, *arguments: Any) -> None:
    with router:
        train(*arguments)


def _bare(model: nn.Module, batches: Batches, settings: Training) -> None:
    """The same training steps in a minimal loop."""
    optimizer = make_optimizer(model, settings)
    model.train()
    device = next(model.parameters()).device
    for step in range(settings.steps):
        batch = batches.batch(step).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = model(**batch.inputs).logits[:, :-1]
            loss = F.cross_entropy(logits[batch.scored], batch.targets[batch.scored])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
