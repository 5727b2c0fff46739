"""The base class of the arena's attacks: attempts to bring back what a model has forgotten."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from routed_rl.lm.batches import Batches
from routed_rl.lm.models import keeps_apart, positions
from routed_rl.lm.texts import row_length, text_corpus
from routed_rl.runs import derive_seed
from routed_rl.unlearning.benchmarks.benchmark import Benchmark, Example, Row
from routed_rl.unlearning.scores.reader import Reader

Setting = float | str
"""What distinguishes an attempt from the others of an attack, such as its learning rate."""
Group = Literal["weights", "prompts"]
"""What an attacker changes: the model's weights, or only what the model reads."""


class Look(Protocol):
    """Measures an attacked model: ``look(step, model, change, benchmark)`` returns the benchmark's main score.

    The main score says how much the model knows of the forget set. ``change`` and ``benchmark`` may be left out.

    Args:
        step: what the attempt has spent so far, in gradient steps.
        model: the attacked model, which is not changed.
        change: what the attacker makes of each question. Left out: questions stay as they are.
        benchmark: the benchmark whose examples are measured, for an attacker who has some of them. None: the victim's.
    """

    def __call__(
        self,
        step: float,
        model: nn.Module,
        change: Callable[[Example], Example] = lambda example: example,
        benchmark: Benchmark | None = None,
    ) -> float:
        """Measure, and return the main score."""


@dataclass(frozen=True, eq=False)
class Victim:
    """A model under attack, with what an attacker may use. The attacker has the benchmark, and no answer of its own.

    Attributes:
        model: not to be changed. Attack a copy.
        tokenizer: its tokenizer.
        benchmark: its documents and questions.
        original: the model before it was unlearned. None: the attacker has not got it.
        batch_size: rows of a gradient step.
        steps: gradient steps that an attempt may spend. A forward pass over as many rows counts a third.
        seed: fixes all that is random.
        gradient_checkpointing: whether attacks that fine-tune save memory: they compute each block again in the
            backward pass. Results are the same.
        accumulate: parts in which attacks that fine-tune compute each batch, to save memory.
    """

    model: nn.Module
    tokenizer: Any
    benchmark: Benchmark
    original: nn.Module | None
    batch_size: int
    steps: int
    seed: int
    gradient_checkpointing: bool = False
    accumulate: int = 1

    @cached_property
    def reader(self) -> Reader:
        """What the model makes of the benchmark's examples before the attack."""
        return Reader(self.model, self.tokenizer, self.benchmark)

    def batches(self, rows: Sequence[Row], name: str) -> Batches:
        """Return batches of documents, for training. Their order is fixed by the seed and ``name``.

        Args:
            rows: the documents. If they are too few for a batch, they are repeated.
        """
        corpus = text_corpus(self.tokenizer, rows, ["."], allow_overlap=True)  # the other set must not be empty
        length = row_length(corpus, self.model)
        documents = corpus.documents("train", "forget")
        while True:
            try:
                return Batches(
                    corpus,
                    documents,
                    length,
                    self.batch_size,
                    derive_seed(self.seed, name),
                    pack=keeps_apart(self.model),
                )
            except ValueError:
                if len(documents) >= self.batch_size * length:
                    raise
                documents = documents.repeat(2)

    def fits(self, example: Example) -> bool:
        """Return whether the model has a position for each token of an example, with any of its answers."""
        most = positions(self.model)
        if most is None:
            return True
        answers = (example.answer, *example.paraphrases, *example.perturbed, *example.choices)
        return max(self.reader.lengths([example] * len(answers), answers)) <= most


class ArenaAttack(ABC):
    """Attempts to bring back what a model has forgotten. The best attempt counts, and in it the best look.

    An attack of your own is a subclass that can be made without arguments: ``--attacks my_module:MyAttack``.

    Attributes:
        group: what the attacker changes.
        needs_original: whether the attacker needs the model before it was unlearned.
        ranked: whether it counts for the worst attack. False: it measures something else.
        sweep: whether the settings are learning rates. Then the best should be neither the lowest nor the highest.
    """

    group: ClassVar[Group]
    needs_original: ClassVar[bool] = False
    ranked: ClassVar[bool] = True
    sweep: ClassVar[bool] = False

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the attack is not possible on a benchmark. None: it is."""
        return None

    @property
    @abstractmethod
    def attempts(self) -> Sequence[Setting]:
        """The setting of each attempt. They share the attack's budget."""

    @abstractmethod
    def attempt(self, setting: Setting, victim: Victim, look: Look) -> float:
        """Attack a copy of a model once, and let ``look`` measure it at least once, at the end.

        An attempt that diverges ends early, and may then end without a look.

        Returns:
            The cost, in gradient steps of the victim's batch size. A forward pass over as many rows counts a third.
            Looks cost nothing.
        """
