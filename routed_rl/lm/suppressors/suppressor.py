"""What suppressors are, and what they share: means that parts of a batch add up to, and a model as it was before.

``B`` rows, ``T`` tokens a row, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import FORGET_LABEL, Batch
from routed_rl.lm.losses import target_logits
from routed_rl.lm.streams import outputs
from routed_rl.lm.training import Objective, Training

FORWARD_PASS = 1 / 3
"""What a forward pass costs, in gradient steps, which have a backward pass of twice as much."""


@dataclass(frozen=True)
class Suppressor(ABC):
    """The settings of a method that suppresses what a model knows; the losses are means over the scored targets of
    a batch that are labelled as to be forgotten, and over the others, which are to be retained::

        method = MaxEnt(retain_weight=2.0)
        source = ForgetAndRetain(forget, retain)
        train(model, source, method.recipe, method.objective(model, seed), gradient=method.gradient)

    Raises:
        ValueError: for a setting that is negative, no number, or none of those that there are.
    """

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            if get_origin(kinds[field.name]) is Literal and value not in get_args(kinds[field.name]):
                known = ", ".join(get_args(kinds[field.name]))
                raise ValueError(f"{field.name} of {type(self).__name__} must be one of {known}, got {value!r}")
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} of {type(self).__name__} must be 0 or more, got {value}")

    @property
    @abstractmethod
    def recipe(self) -> Training:
        """How it is trained in the small protocol."""

    @property
    def cost(self) -> float:
        """What a step of it costs, in gradient steps on as many tokens."""
        return 1.0

    @abstractmethod
    def loss(self, model: nn.Module, seed: int) -> Objective:
        """What is minimised, as a function of a model and a batch: of a part of a batch, its share.

        Args:
            model: the model that knows what is to be forgotten, before it is distributed.
            seed: of what is drawn once.
        """

    def objective(self, model: nn.Module, seed: int) -> Objective:
        """:meth:`loss` as :func:`~routed_rl.lm.train` takes it: times the targets that it divides by."""
        loss = self.loss(model, seed)
        return lambda trained, batch: loss(trained, batch) * int(batch.whole.scored.sum())

    def gradient(self, model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """The gradient of a step as :func:`~routed_rl.lm.train` takes it: that of the loss where the model is."""
        return compute()


def brief(steps: int, learning_rate: float) -> Training:
    """As suppressors are trained: at a constant rate, without weight decay."""
    return Training(steps, learning_rate, warmup=0, final=1.0, weight_decay=0.0)


def forget_targets(batch: Batch) -> Tensor:
    """``(B, T - 1)`` bool: the targets to be forgotten."""
    return batch.scored & (batch.labels[:, 1:] == FORGET_LABEL)


def retain_targets(batch: Batch) -> Tensor:
    """``(B, T - 1)`` bool: the targets to be retained."""
    return batch.scored & (batch.labels[:, 1:] != FORGET_LABEL)


def forget_rows(batch: Batch) -> Tensor:
    """``(B,)`` bool: the rows with targets to be forgotten."""
    return forget_targets(batch).any(dim=1)


def mean(values: Tensor, chosen: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """The mean of a batch's values where they are chosen, 0 if none is; of a part, its share of the whole's mean."""
    return values.masked_fill(~chosen(batch), 0.0).sum() / max(int(chosen(batch.whole).sum()), 1)


class Reference:
    """A frozen copy of a model as it was, which goes where its inputs are."""

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """``(B, T - 1, V)``: what it says of every target."""
        return target_logits(self._model.to(batch.tokens.device), batch)

    @torch.no_grad()
    def output(self, name: str, batch: Batch) -> Tensor:
        """What one of its modules gives."""
        model = self._model.to(batch.tokens.device)
        with outputs(model.get_submodule(name)) as seen:
            model(input_ids=batch.tokens, use_cache=False)
        return seen[0]
