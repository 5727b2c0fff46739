"""A check that a suppression method does what training and studies expect of it, on a tiny model."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from routed_rl.lm.alternatives import Alternatives
from routed_rl.lm.batches import ALTERNATIVE_LABEL, Batch, Batches
from routed_rl.lm.corpora import Corpus
from routed_rl.lm.forget_and_retain import ForgetAndRetain
from routed_rl.lm.passes import counted
from routed_rl.lm.suppressors.suppressor import Suppressor
from routed_rl.lm.training import Training, train

VOCABULARY, LENGTH, DOCUMENTS, ROWS, STEPS = 16, 10, 40, 8, 2
NEAR = 0.05
"""How far the cost of a step may be from what was counted, in gradient steps."""


def check_suppressor(method: Suppressor, parts: bool = True) -> None:
    """Check that a suppression method does what training and studies expect of it.

    The check takes a second. It runs the method on a tiny Llama with random weights, so it does not say how well the
    method suppresses.

    - Settings are fields of a dataclass, and ``recipe`` is a :class:`~routed_rl.lm.Training`.
    - The loss is one finite number, and so is its gradient. It changes some weights, but not before the first step.
    - The loss of a batch is the sum of the losses of its parts. A part without forget targets has a finite loss. No
      part is cut between a forget row and its alternative.
    - The same seed gives the same weights, whatever random numbers were drawn before.
    - ``cost`` is the cost of the forward and backward passes.

    >>> check_suppressor(MaxEnt(retain_weight=2.0))  # doctest: +SKIP

    Args:
        method: the method, with the settings to check.
        parts: whether the losses of parts add up. Give False for a method that draws random numbers for each part, or
            needs several rows in each part.

    Raises:
        ValueError: for the first of these that does not hold.
    """
    name = type(method).__name__
    _check_settings(method, name)
    paired = method.alternatives is not None
    source, model = _source(paired), _model()
    start = copy.deepcopy(model.state_dict())
    loss = method.loss(model, 0)
    if any(not torch.equal(value, start[key]) for key, value in model.state_dict().items()):
        raise ValueError(f"{name}.loss changes the model's weights before training; it must only return a function")
    batch = source.batch(0)
    whole = _loss(loss(model.train(), batch), f"of {name}")
    whole.backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    if bad := [key for key, gradient in gradients.items() if not gradient.isfinite().all()]:
        raise ValueError(f"the loss of {name} has a gradient that is not finite, in {bad[0]}")
    if not any(gradient.any() for gradient in gradients.values()):
        raise ValueError(f"the loss of {name} has no gradient: no weight would change")
    if parts:
        _check_parts(loss, model, batch, whole.item(), name)
    first, again = (_trained(method, source, noise) for noise in (1, 2))
    if any(not torch.equal(value, again[0][key]) for key, value in first[0].items()):
        raise ValueError(
            f"{name} does not give the same weights again with the same seed: in loss(model, seed), draw from "
            "torch.Generator().manual_seed(seed)"
        )
    if all(torch.equal(value, start[key]) for key, value in first[0].items()):
        raise ValueError(f"{name} changes no weights in {STEPS} steps: does its gradient leave one in the parameters?")
    if not abs(first[1] - method.cost) <= NEAR:
        raise ValueError(
            f"the cost of {name} is {method.cost:.3g}, but its passes cost {first[1]:.3g} gradient steps: override "
            "cost; a forward pass without gradient costs FORWARD_PASS"
        )


def _check_settings(method: Any, name: str) -> None:
    if not isinstance(method, Suppressor):
        what = (
            f"the class {method.__name__}: make one, {method.__name__}()" if isinstance(method, type) else repr(method)
        )
        raise ValueError(f"method must be a Suppressor, got {what}")
    known = {field.name for field in fields(method)}
    if left := [key for key in inspect.get_annotations(type(method)) if key not in known]:
        raise ValueError(f"{left[0]} is no setting of {name}: write @dataclass(frozen=True) before the class")
    if not isinstance(method.recipe, Training) or method.recipe.steps < 1:
        raise ValueError(f"recipe of {name} must be a Training of 1 step or more, got {method.recipe!r}")


def _loss(loss: Any, whose: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.shape != ():
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f"the loss {whose} must be a tensor of one number, got {found}")
    if not loss.isfinite():
        raise ValueError(f"the loss {whose} is {loss.item()}")
    if not loss.requires_grad:
        raise ValueError(f"the loss {whose} has no gradient: do not detach it from the model")
    return loss


def _check_parts(loss: Any, model: nn.Module, batch: Batch, whole: float, name: str) -> None:
    alternative = (batch.labels == ALTERNATIVE_LABEL).any(dim=1)  # these rows stay with the rows before them
    starts = [*torch.nonzero(~alternative).flatten().tolist(), len(batch)]
    shares = [
        _loss(loss(model, batch.rows(slice(*part))), f"of {name} for a part of a batch").item()
        for part in pairwise(starts)
    ]
    if not math.isclose(sum(shares), whole, rel_tol=1e-5, abs_tol=1e-7):
        raise ValueError(
            f"the loss of {name} for a batch is {whole:.6g}, but the losses of its parts sum to {sum(shares):.6g}: "
            "average with mean(…), which divides by the targets of the whole batch; or give parts=False if it draws "
            "random numbers for each part"
        )


def _trained(method: Suppressor, source: ForgetAndRetain, noise: int) -> tuple[dict[str, Tensor], float]:
    """Return the weights after some steps, and the cost of a step as counted."""
    model = _model()
    with torch.random.fork_rng():
        torch.manual_seed(noise)
        objective = method.objective(model, 0)
        with counted(model) as costs:
            train(model, source, replace(method.recipe, steps=STEPS), objective, gradient=method.gradient)
    return model.state_dict(), sum(costs) / sum(len(source.batch(step)) for step in range(STEPS))


def _model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM  # imports much

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).double()


def _source(paired: bool) -> ForgetAndRetain:
    """Return batches of random documents. Each set has tokens of its own, and rows differ in length.

    Args:
        paired: whether there are alternatives, which are random documents of the retain set.
    """
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, *rng.integers(LENGTH // 2, LENGTH + 1, 2 * DOCUMENTS)])
    forget = np.arange(starts[-1]) >= starts[DOCUMENTS]
    half = VOCABULARY // 2
    tokens = (rng.integers(0, half, starts[-1]) + half * forget).astype(np.uint32)
    corpus = Corpus(tokens, forget, starts, np.zeros(2 * DOCUMENTS, dtype=bool), {})
    sets = np.arange(DOCUMENTS, 2 * DOCUMENTS), np.arange(DOCUMENTS)
    forget, retain = (Batches(corpus, of, LENGTH, ROWS, 0, corpus.to_forget, pack=False) for of in sets)
    others = replace(corpus, tokens=corpus.tokens[: starts[DOCUMENTS]], starts=starts[: DOCUMENTS + 1])
    return ForgetAndRetain(forget, retain, Alternatives(sets[0], others) if paired else None)
