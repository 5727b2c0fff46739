"""The base class of suppressors, and what they share: means over parts of a batch, and a copy of the original model.

``B`` rows, ``T`` tokens a row, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.lm.batches import ALTERNATIVE_LABEL, FORGET_LABEL, Batch, in_parts, row_keys
from routed_rl.lm.losses import target_logits, token_losses
from routed_rl.lm.streams import outputs
from routed_rl.lm.training import Objective, Training


@dataclass(frozen=True)
class _Given:
    """What :meth:`Suppressor.objective` was given, for the references that :meth:`Suppressor.loss` makes."""

    original: nn.Module | None = None
    batches: Iterable[Batch] | None = None


NOTHING = _Given()
_GIVEN: ContextVar[_Given] = ContextVar("given", default=NOTHING)


class UnlearningMethod(ABC):
    """What makes a model forget: a :class:`Suppressor`, or a procedure of several trainings."""

    @property
    @abstractmethod
    def recipe(self) -> Training:
        """The training settings of the small protocol; of a procedure, those of each stage."""

    @property
    def alternatives(self) -> tuple[str, ...] | None:
        """Answers of which each forget question gets one. Batches then have an alternative row after each forget row.

        None: the method needs no alternative answers. Without any: the user gives one for each forget question.
        """
        return None


@dataclass(frozen=True)
class Suppressor(UnlearningMethod):
    """The settings of a method that suppresses what a model knows of the forget set.

    Losses are means over the scored targets of a batch. Targets with the label "forget" are the forget targets. Targets
    of alternative answers, if the method needs them, have a label of their own. All others are the retain targets::

        method = MaxEnt(retain_weight=2.0)
        source = ForgetAndRetain(forget, retain)
        train(model, source, method.recipe, method.objective(model, seed), gradient=method.gradient)

    Raises:
        ValueError: for a setting that is negative, not a finite number, or not one of the possible values.
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
    def cost(self) -> float:
        """Cost of one step, in plain gradient steps on as many tokens."""
        return 1.0

    @abstractmethod
    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss, a function of a model and a batch. For a part of a batch it gives the part's share.

        A loss that changes from step to step by more than the weights keeps what changes in tensors, and changes them
        in place. Its attribute ``state`` has them by name. Checkpoints save them.

        Args:
            model: the original model, before it is distributed.
            seed: fixes what is drawn once.
        """

    def objective(
        self,
        model: nn.Module,
        seed: int,
        *,
        original: nn.Module | None = None,
        batches: Iterable[Batch] | None = None,
    ) -> Objective:
        """Return the :meth:`loss` for :func:`~routed_rl.lm.train`, times the number of targets, by which it divides.

        Args:
            model, seed: as for :meth:`loss`.
            original: a model with the same weights, which nobody changes during training. It is the reference, in place
                of a copy of ``model``. Put it in evaluation mode.
            batches: the batches of all steps of training. A method that compares only the losses of examples with those
                of the original model (NPO) then computes these losses now, and keeps no reference.
        """
        given = _GIVEN.set(_Given(original, batches))
        try:
            loss = self.loss(model, seed)
        finally:
            _GIVEN.reset(given)
        return _Summed(loss)

    def gradient(self, model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """Compute a step's gradient for :func:`~routed_rl.lm.train`: that of the loss at the current weights."""
        return compute()


class _Summed:
    """A loss times the number of targets, by which training divides; with the state of the loss, if it has any."""

    def __init__(self, loss: Objective) -> None:
        self._loss = loss
        self.state: dict[str, Tensor] = getattr(loss, "state", {})

    def __call__(self, trained: nn.Module, batch: Batch) -> Tensor:
        return self._loss(trained, batch) * int(batch.whole.scored.sum())


def brief(steps: int, learning_rate: float) -> Training:
    """Return the training settings of suppressors: a constant learning rate, and no weight decay."""
    return Training(steps, learning_rate, warmup=0, final=1.0, weight_decay=0.0)


def forget_targets(batch: Batch) -> Tensor:
    """Return ``(B, T - 1)`` bool: the scored targets with the label "forget"."""
    return batch.scored & (batch.labels[:, 1:] == FORGET_LABEL)


def retain_targets(batch: Batch) -> Tensor:
    """Return ``(B, T - 1)`` bool: the scored targets that are neither forget targets nor of alternative answers."""
    labels = batch.labels[:, 1:]
    return batch.scored & (labels != FORGET_LABEL) & (labels != ALTERNATIVE_LABEL)


def alternative_targets(batch: Batch) -> Tensor:
    """Return ``(B, T - 1)`` bool: the scored targets of alternative answers."""
    return batch.scored & (batch.labels[:, 1:] == ALTERNATIVE_LABEL)


def forget_examples(batch: Batch) -> Tensor:
    """Return ``(B, T)`` bool, as :meth:`Batch.by_example`: the examples with forget targets."""
    return batch.by_example(forget_targets(batch).float()) > 0


def mean(values: Tensor, chosen: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """Return the mean of the chosen values; without any, 0. For a part of a batch: its share of the whole mean."""
    return values.masked_fill(~chosen(batch), 0.0).sum() / max(int(chosen(batch.whole).sum()), 1)


class Reference:
    """The original model, frozen, for whole distributions: a copy, unless :meth:`Suppressor.objective` got a model.

    It moves to the device of its inputs.
    """

    def __init__(self, model: nn.Module) -> None:
        original = _GIVEN.get().original
        self._model = copy.deepcopy(model).requires_grad_(False).eval() if original is None else original

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Return ``(B, T - 1, V)``: the logits for every target."""
        return target_logits(self._model.to(batch.tokens.device), batch)

    @torch.no_grad()
    def losses(self, batch: Batch) -> Tensor:
        """Return ``(B, T - 1)``: the loss of every target."""
        return token_losses(self._model.to(batch.tokens.device), batch)

    @torch.no_grad()
    def outputs(self, names: Sequence[str], batch: Batch) -> list[Tensor]:
        """Return the outputs of some of the model's modules, in the order in which they run."""
        model = self._model.to(batch.tokens.device)
        with outputs(*map(model.get_submodule, names)) as seen:
            model(**batch.inputs)
        return seen

    def output(self, name: str, batch: Batch) -> Tensor:
        """Return the output of one of the model's modules."""
        return self.outputs([name], batch)[0]


class ReferenceLosses:
    """The original model's loss on each example, summed over some of its targets. Default: the forget targets.

    If :meth:`Suppressor.objective` got the batches of training, the losses of all their rows are computed once, before
    training, and no reference is kept. Else a :class:`Reference` is run on every batch. An example's loss does not
    depend on the rows beside it, so both give the same numbers within rounding.

    Raises:
        ValueError: when called, for rows that were not in the batches.
    """

    def __init__(self, model: nn.Module, targets: Callable[[Batch], Tensor] = forget_targets) -> None:
        given, self._targets = _GIVEN.get(), targets
        self._known: dict[bytes, Tensor] | None = None
        self._reference: Reference | None = None
        if given.batches is None:
            self._reference = Reference(model)
        else:
            self._known = _example_losses(model if given.original is None else given.original, given.batches, targets)

    def __call__(self, batch: Batch) -> Tensor:
        """Return ``(B, T)``, as :meth:`Batch.by_example`."""
        if self._known is None:
            assert self._reference is not None
            return batch.by_example(self._reference.losses(batch).masked_fill(~self._targets(batch), 0.0))
        chosen = self._targets(batch)
        found = [self._known.get(key) for key in row_keys(batch, chosen)]
        needed = chosen.any(dim=1).tolist()
        if missing := sum(need and losses is None for need, losses in zip(needed, found, strict=True)):
            raise ValueError(f"the original model's losses of {missing} rows are unknown: pass all batches of training")
        width = batch.tokens.shape[1]
        rows = [torch.zeros(width) if losses is None else F.pad(losses, (0, width - len(losses))) for losses in found]
        return torch.stack(rows).to(batch.tokens.device)


@torch.no_grad()
def _example_losses(
    model: nn.Module, batches: Iterable[Batch], targets: Callable[[Batch], Tensor]
) -> dict[bytes, Tensor]:
    """Return each row's ``(E,)`` losses of examples, summed over some targets, by the row's key. Rows without any of
    these targets are left out."""
    known: dict[bytes, Tensor] = {}
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        for batch in batches:
            chosen = targets(batch)
            keys = row_keys(batch, chosen)
            new = [i for i, key in enumerate(keys) if bool(chosen[i].any()) and key not in known]
            if not new:
                continue
            for part in in_parts(batch.rows(torch.tensor(new))):
                part = part.to(device)
                sums = part.by_example(token_losses(model, part).masked_fill(~targets(part), 0.0)).cpu()
                examples = part.examples.amax(dim=1).cpu() + 1
                for row, count, key in zip(sums, examples, row_keys(part, targets(part)), strict=True):
                    known[key] = row[: int(count)].clone()
    finally:
        model.train(training)
    return known
