"""Metrics: what a model knows of the forget set or of the retain set, as one number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from routed_rl.lm.arithmetic import exact_match
from routed_rl.lm.batches import WholeDocuments
from routed_rl.lm.completions import Prompt, completion_accuracy
from routed_rl.lm.losses import evaluate
from routed_rl.options.undo import LmEval
from routed_rl.unlearning.harness import check_task, harness_value
from routed_rl.wording import written

Kind = Literal["retain", "forget"]


class Metric(ABC):
    """What a model knows of the forget set or of the retain set, as one number.

    A metric of your own is a subclass that can be made without arguments: ``--metric my_module:MyMetric``.

    Attributes:
        unit: what the number is called in tables and on axes.
        higher_is_better: whether a larger number means that a model knows more.
        limits: the smallest and the largest number that there can be. None: there are no limits.
    """

    unit: ClassVar[str] = "score"
    higher_is_better: ClassVar[bool] = True
    limits: ClassVar[tuple[float, float] | None] = None

    @abstractmethod
    def measure(self, model: nn.Module, tokenizer: Any, documents: WholeDocuments, kind: Kind) -> float:
        """Return the number. A diverged model may give NaN, infinity or FloatingPointError.

        Args:
            model: a causal language model, in whichever mode. It must not be changed.
            documents: of the kind. Their tokens are in ``documents.corpus``.
            kind: "retain" or "forget".
        """

    def ignorance(self, tokenizer: Any) -> float:
        """Return the number of a model that knows nothing."""
        return 0.0

    def check(self, tokenizer: Any, documents: WholeDocuments, kind: Kind) -> None:  # noqa: B027
        """Raise ValueError if the number cannot be measured on these documents. No model is needed."""


@dataclass(frozen=True)
class Loss(Metric):
    """Cross-entropy, as a mean over scored tokens."""

    unit = "loss (nats per token)"
    higher_is_better = False

    def measure(self, model: nn.Module, tokenizer: Any, documents: WholeDocuments, kind: Kind) -> float:
        """Return the loss; see :meth:`Metric.measure`."""
        return evaluate(model, documents).mean()

    def ignorance(self, tokenizer: Any) -> float:
        """Return the loss of uniform guesses, the logarithm of the number of tokens."""
        return float(np.log(len(tokenizer)))


@dataclass(frozen=True)
class Answers(Metric):
    """Share of documents whose last tokens, the answer, are predicted correctly."""

    answer: int = 3
    unit = "accuracy"
    limits = (0.0, 1.0)

    def measure(self, model: nn.Module, tokenizer: Any, documents: WholeDocuments, kind: Kind) -> float:
        """Return the share; see :meth:`Metric.measure`."""
        return exact_match(model, documents, self.answer)

    def check(self, tokenizer: Any, documents: WholeDocuments, kind: Kind) -> None:
        """Raise ValueError if a document is no longer than an answer."""
        shortest = int(np.diff(documents.corpus.starts)[documents.documents].min())
        if self.answer >= shortest:
            raise ValueError(
                f"{written('--metric', 'answers')} needs documents that are longer than their answer of "
                f"{written('--answer', self.answer)} tokens, got a document of {shortest} tokens: lower --answer, or "
                f"use {written('--metric', 'loss')}"
            )


@dataclass(frozen=True)
class Completions(Metric):
    """Share of prompts that a model completes correctly."""

    prompts: Sequence[Prompt]
    answer: int
    unit = "accuracy"
    limits = (0.0, 1.0)

    def measure(self, model: nn.Module, tokenizer: Any, documents: WholeDocuments, kind: Kind) -> float:
        """Return the share of the kind's prompts; see :meth:`Metric.measure`. The documents do not matter."""
        prompts = [prompt for prompt in self.prompts if prompt.forget == (kind == "forget")]
        return completion_accuracy(model, tokenizer, prompts, self.answer)


@dataclass(frozen=True)
class Harness(Metric):
    """A value of a task of lm-eval."""

    tasks: LmEval

    def measure(self, model: nn.Module, tokenizer: Any, documents: WholeDocuments, kind: Kind) -> float:
        """Return the value of the kind's task; see :meth:`Metric.measure`. The documents do not matter."""
        tasks = self.tasks
        return harness_value(model, tokenizer, self._task(kind), tasks.value, tasks.limit, tasks.include)

    def ignorance(self, tokenizer: Any) -> float:
        """Return the value that the options state."""
        return self.tasks.chance

    def check(self, tokenizer: Any, documents: WholeDocuments, kind: Kind) -> None:
        """Raise MissingExtraError if lm-eval is not installed, and ValueError if it has no such task."""
        check_task(self._task(kind), self.tasks.include)

    def _task(self, kind: Kind) -> str:
        return self.tasks.retain if kind == "retain" else self.tasks.forget
