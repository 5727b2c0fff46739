"""Expand, Route, Ablate on the user's own model and texts (gradient routing, section 4.2.2), in four calls.

The calls are :func:`~routed_rl.lm.expand`, :func:`route`, :func:`~routed_rl.lm.ablate` and :func:`repair`. The second
and the fourth, which train, are here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from routed_rl.lm.batches import Batches, WholeDocuments
from routed_rl.lm.era import TABLE, EraObjective, Expansion, era_weights, token_weights
from routed_rl.lm.fine_tuning import FineTuning, fine_tune
from routed_rl.lm.losses import evaluate
from routed_rl.lm.models import keeps_apart
from routed_rl.lm.texts import Texts, row_length, text_corpus
from routed_rl.lm.training import Training, train
from routed_rl.routing import GradientRouter
from routed_rl.routing.site import Mode
from routed_rl.runs import derive_seed
from routed_rl.runs.progress import progress_bar

PUBLISHED_ALPHA = -0.75
"""Gradient routing, section C: the original units unlearn the topic's own words a little."""


def route(
    model: nn.Module,
    expansion: Expansion,
    tokenizer: Any,
    forget: Texts,
    retain: Texts,
    *,
    mode: Mode = "activation",
    alpha: float | None = None,
    bias: float = 4.0,
    l1: float = 1e-4,
    steps: int = 600,
    learning_rate: float = 2e-3,
    training: Training | None = None,
    batch_size: int = 32,
    length: int | None = None,
    pack: bool = True,
    seed: int = 0,
    progress: bool = True,
    callback: Callable[[int, nn.Module], None] = lambda steps, model: None,
) -> None:
    """Train an expanded model, in place: the new units learn the topic's words in forget documents, all units the rest.

    Args:
        model: the model that :func:`~routed_rl.lm.expand` was called on.
        expansion: what :func:`~routed_rl.lm.expand` returned.
        tokenizer: the model's own.
        forget: documents that are labelled as about the topic.
        retain: all other documents. Some may be about the topic too: labels may be partial.
        mode: how gradients are routed: "activation", "parameter" or "forward".
        alpha: weight with which the original units learn the topic's words. None: -0.75 (the paper) in mode
            "activation", else 0.
        bias: a lower number routes more words (:func:`~routed_rl.lm.token_weights`).
        l1: weight of the L1 penalty on the hidden activations of the expanded layers.
        steps: gradient steps.
        learning_rate: AdamW's highest; it decays by a cosine to a tenth.
        training: all training settings, in place of ``steps`` and ``learning_rate``.
        batch_size: rows in a gradient step.
        length: most tokens in a row. None: the longest document, at most 256.
        pack: whether shorter documents share rows. They do not see each other. False: each has a row of its own.
        seed: fixes the order of documents.
        progress: show a progress bar on standard error.
        callback: called after each gradient step, with the number of steps so far and the model in training.

    Raises:
        ValueError: as :func:`~routed_rl.lm.text_corpus`, or for too few documents for one batch.
        FloatingPointError: if the loss diverges.
    """
    corpus = text_corpus(tokenizer, forget, retain)
    labelled = corpus.labelled(1.0)
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    labelled_counts = corpus.counts(corpus.documents("train", "forget"), vocabulary)
    weight = token_weights(labelled_counts, corpus.counts(corpus.documents("train", "retain"), vocabulary), bias)
    if mode == "forward":  # here units are either on or off
        weight = np.where(weight < 0.5, 0.0, 1.0)
    if alpha is None:
        alpha = PUBLISHED_ALPHA if mode == "activation" else 0.0
    pack = pack and keeps_apart(model)
    router = GradientRouter(model, expansion.sites(mode), TABLE, mode)
    weights = era_weights(torch.tensor(weight, dtype=torch.float32), alpha)
    order = derive_seed(seed, "order")
    documents, length = corpus.documents("train"), length or row_length(corpus, model)
    source = Batches(corpus, documents, length, batch_size, order, labelled, pack)
    settings = training or Training(steps, learning_rate, warmup=min(50, steps // 4))
    with router, progress_bar("route", settings.steps, progress) as tick:

        def on_step(step: int) -> None:
            tick(step)
            callback(step + 1, model)

        train(model, source, settings, EraObjective(router, weights, expansion, l1), seed=seed, on_step=on_step)


def repair(
    model: nn.Module,
    tokenizer: Any,
    retain: Texts,
    *,
    steps: int = 20,
    learning_rate: float = 3e-4,
    progress: bool = True,
    callback: Callable[[int], None] = lambda steps: None,
) -> nn.Module:
    """Return a copy of an ablated model, fine-tuned on a few retain documents (gradient routing, section C).

    Half of the documents form one batch, on which the copy is trained. The other half selects the best step.

    Args:
        model: the model after :func:`~routed_rl.lm.ablate`.
        tokenizer: the model's own.
        retain: documents that are surely not about the topic; 64 to 300 are enough.
        steps: gradient steps at most. Training ends earlier after three rises of the loss in a row.
        learning_rate: AdamW's, constant.
        progress: as for :func:`route`.
        callback: called after each gradient step, with the number of steps so far.

    Raises:
        ValueError: for fewer than two documents, or as :func:`~routed_rl.lm.text_corpus`.
        FloatingPointError: if the loss diverges.
    """
    texts: list[Any] = list(retain)
    if len(texts) < 2:
        raise ValueError(f"repair needs at least two documents, one to train on and one to select by, got {len(texts)}")
    corpus = text_corpus(tokenizer, texts[::2], texts[1::2])  # the two halves, in place of forget and retain set
    tuned, selection = (WholeDocuments(corpus, corpus.documents("train", kind)) for kind in ("forget", "retain"))

    def measure(model: nn.Module) -> dict[str, float]:
        return {"selection": evaluate(model, selection).mean()}

    with progress_bar("repair", steps, progress) as tick:
        done = count(1)

        def on_step() -> None:
            tick()
            callback(next(done))

        return fine_tune(model, tuned, FineTuning(steps, learning_rate), measure, on_step)[0]
