"""One training of :func:`~routed_rl.unlearning.unlearn`: a suppression method on some documents of both sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import nn

from routed_rl.lm.alternatives import Alternatives
from routed_rl.lm.batches import Batches
from routed_rl.lm.forget_and_retain import ForgetAndRetain
from routed_rl.lm.suppressors import Suppressor
from routed_rl.lm.training import Training, train
from routed_rl.runs import derive_seed
from routed_rl.unlearning.copies import TrainedCopy, kept


class Data(Protocol):
    """Where the batches of a stage come from."""

    def batches(self, documents: np.ndarray, batch_size: int, seed: int) -> Batches: ...


@dataclass
class SuppressionStage:
    """A :data:`~routed_rl.unlearning.procedures.Stage`: trains a copy of a model, with the settings of one call.

    Args:
        data: gives batches of documents.
        recipe: training settings, also how many parts a batch has.
        batch_size: rows of each set in a gradient step.
        rank: of low-rank adapters. None: all weights that the method trains.
        merge: whether adapters are merged into the weights at the end.
        options: further options of :class:`TrainedCopy`.
        callback: called after each gradient step, with the steps of all stages so far and the model in training.
        alternatives: of all forget documents, for methods that teach other answers.
    """

    data: Data
    recipe: Training
    batch_size: int
    rank: int | None
    merge: bool
    options: dict[str, Any]
    callback: Callable[[int, nn.Module], None]
    alternatives: Alternatives | None = None
    done: int = 0

    def __call__(
        self, model: nn.Module, forget: np.ndarray, retain: np.ndarray, method: Suppressor, seed: int
    ) -> nn.Module:
        """Return a trained copy of a model. Meanwhile the model is frozen, and the reference of methods.

        Args:
            forget: numbers of the forget documents.
            retain: numbers of the retain documents. Without any, batches have forget rows only.
        """
        rows = self.data.batches(forget, self.batch_size, derive_seed(seed, "forget"))
        source: Batches | ForgetAndRetain = rows
        if len(retain):
            retained = self.data.batches(retain, self.batch_size, derive_seed(seed, "retain"))
            source = ForgetAndRetain(rows, retained, self.alternatives)
        copied = TrainedCopy(model, self.rank, **self.options)
        copied.warn(self.recipe.learning_rate, stacklevel=4)  # the line that calls unlearn
        seed = derive_seed(seed, "suppress")
        with kept(model):
            batches = (source.batch(step) for step in range(self.recipe.steps))
            objective = method.objective(copied.model, seed, original=model, batches=batches)
            copied.begin(seed)

            def after(step: int) -> None:
                self.done += 1
                self.callback(self.done, copied.model)

            train(
                copied.distributed,
                source,
                copied.training(self.recipe),
                objective,
                seed=seed,
                gradient=method.gradient,
                on_step=after,
            )
        trained: nn.Module = copied.result(self.merge)
        return trained
