"""The documents of an UNDO study: for training, measurement, suppression and the attack."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from torch import nn

from routed_rl.errors import user_input
from routed_rl.lm import (
    Batches,
    Prompt,
    WholeDocuments,
    completion_accuracy,
    encode_prompt,
    evaluate,
    exact_match,
    keeps_apart,
    read_prompts,
    word_problem_prompts,
)
from routed_rl.lm.inputs import TEXT_SEED, Text
from routed_rl.options.undo import UndoOptions
from routed_rl.routing import LabelNoise
from routed_rl.runs import derive_seed
from routed_rl.unlearning.undo_study.harness import harness_value


class Domains:
    """The documents of a study, by use.

    Attributes:
        retain, forget: training documents of each set.
        mixture: both sets. If the forget set is smaller, it is repeated to about the size of the retain set.
        measured: the documents on which models are measured, by kind. With other metrics than the loss, the loss
            barrier is still measured on them.
        prompts: prompts of the metric "completions"; else empty.

    Raises:
        ValueError: if a part has no documents, or a document is no longer than the answer of the metric "answers".
    """

    def __init__(self, command: UndoOptions, text: Text) -> None:
        self.command, self.corpus, self.tokenizer = command, text.corpus, text.tokenizer
        self.retain, self.forget = self.corpus.documents("train", "retain"), self.corpus.documents("train", "forget")
        self._repeats = max(round(len(self.retain) / len(self.forget)), 1)
        self.mixture = self._mixture(self.forget)
        self.prompts: list[Prompt] = []
        if command.metric == "completions":
            self.prompts = read_study_prompts(command, text.tokenizer)
        order = np.random.default_rng(derive_seed(0, "measured"))
        self.measured: dict[str, WholeDocuments] = {}
        kinds: tuple[tuple[Literal["retain", "forget"], np.ndarray], ...]
        kinds = (("retain", self.retain), ("forget", self.forget))
        for kind, trained in kinds:
            # Without validation documents, models are measured on training documents.
            documents = self.corpus.documents("validation", kind) if command.validation is not None else trained
            documents = order.permutation(documents)[: command.test_documents]
            shortest = int(np.diff(self.corpus.starts)[documents].min())
            if command.metric == "answers" and command.answer >= shortest:
                raise ValueError(
                    f"--metric answers needs documents that are longer than their answer of --answer {command.answer} "
                    f"tokens, got a document of {shortest} tokens: lower --answer, or use --metric loss"
                )
            self.measured[kind] = WholeDocuments(self.corpus, documents)

    def labelled(self, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the documents that suppression uses: the labelled documents, and the unlabelled retain documents.

        With label noise, some labelled documents are retain documents.

        Raises:
            ValueError: if there are no documents of a kind.
        """
        noise = LabelNoise(self.command.miss_rate, self.command.flip_rate)
        labelled = self.corpus.labelled(share, noise, derive_seed(seed, "labels"))
        found = np.concatenate([self.retain, self.forget])
        found = found[labelled[found]]
        if not len(found):
            raise ValueError(
                f"--labelled {share} labels none of {len(self.forget)} forget documents: use a larger share"
            )
        retain = self.retain[~labelled[self.retain]]
        if not len(retain):
            raise ValueError(f"--flip-rate {self.command.flip_rate} labels every retain document as forget: lower it")
        return found, retain

    def without(self, share: float, seed: int) -> np.ndarray:
        """Return the mixture without the labelled documents, if this share of the forget set is labelled.

        Share 0 gives the whole mixture, and share 1 the retain set.
        """
        if share in (0, 1):
            return self.retain if share else self.mixture
        return self._mixture(self.forget, self.labelled(share, seed)[0])

    def _mixture(self, forget: np.ndarray, without: np.ndarray | None = None) -> np.ndarray:
        documents = np.concatenate([self.retain, np.repeat(forget, self._repeats)])
        return documents if without is None else documents[~np.isin(documents, without)]

    def batches(
        self, model: nn.Module, documents: np.ndarray, batch_size: int, seed: int, labelled: bool = False
    ) -> Batches:
        """Return batches of documents for a model, in a new order each epoch. Too few for a batch are repeated.

        Args:
            labelled: whether all of them have the label "forget".
        """
        pack, length = self.command.pack and keeps_apart(model), self.command.length
        rows = float(len(documents))  # at least
        if pack:
            rows = np.minimum(np.diff(self.corpus.starts)[documents], length).sum() / length
        repeated = np.tile(documents, math.ceil(batch_size / rows))
        labels = np.isin(np.arange(len(self.corpus.validation)), documents) if labelled else None
        return Batches(self.corpus, repeated, length, batch_size, seed, labels, pack)

    def measure(self, model: nn.Module, kind: str) -> float:
        """Return the metric of a model on one kind of documents.

        A diverged model gives NaN, infinity or FloatingPointError.
        """
        documents = self.measured[kind]
        if self.command.metric == "answers":
            return exact_match(model, documents, self.command.answer)
        if self.command.metric == "completions":
            prompts = [prompt for prompt in self.prompts if prompt.forget == (kind == "forget")]
            return completion_accuracy(model, self.tokenizer, prompts, self.command.answer)
        if self.command.metric == "lm-eval":
            settings = self.command.lm_eval
            task = settings.retain if kind == "retain" else settings.forget
            with user_input():
                return harness_value(model, self.tokenizer, task, settings.value, settings.limit, settings.include)
        return evaluate(model, documents).mean()

    def measures(self, model: nn.Module) -> dict[str, float]:
        """:meth:`measure` of both kinds."""
        return {kind: self.measure(model, kind) for kind in self.measured}

    def attacker(self, model: nn.Module, seed: int) -> Batches:
        """Return the attacker's batches for a model."""
        rows = self.command.relearn.batch_size
        return self.batches(model, self.attacked_with(seed), rows, derive_seed(seed, "attack"))

    def attacked_with(self, seed: int) -> np.ndarray:
        """Return the attacker's documents: forget documents, and the options' share of retain documents."""
        relearning = self.command.relearn
        order = np.random.default_rng(derive_seed(seed, "attacker"))
        forget, share = self.forget, relearning.retain_share
        if relearning.others:
            forget = np.setdiff1d(forget, self.measured["forget"].documents)
            if not len(forget):
                raise ValueError("--relearn.others leaves the attacker no forget document: lower --test-documents")
        if share == 1:
            return order.permutation(self.retain)[: relearning.examples]
        forget = order.permutation(forget)[: relearning.examples]
        count = int(-(-len(forget) * share // (1 - share)))
        return np.concatenate([forget, order.choice(self.retain, count, replace=count > len(self.retain))])


def higher_is_better(command: UndoOptions) -> bool:
    """Whether a larger value of the metric means that a model knows more."""
    return command.metric != "loss"


def read_study_prompts(command: UndoOptions, tokenizer: Any) -> list[Prompt]:
    """Return the prompts of the metric "completions".

    Raises:
        ValueError, OSError: if there are no prompts, or they cannot be read or are too long.
    """
    if command.prompts is not None:
        prompts = read_prompts(command.prompts)
    elif command.corpus == "word-problems":
        prompts = word_problem_prompts(command.test_documents, TEXT_SEED)
    else:
        raise ValueError("--metric completions needs --prompts, except with --corpus word-problems")
    for prompt in prompts:
        answer = len(tokenizer.encode(f" {prompt.answer.strip()}", add_special_tokens=False))
        if answer > command.answer:
            raise ValueError(
                f"--answer {command.answer} is too small: the answer {prompt.answer!r} has {answer} tokens"
            )
        length = len(encode_prompt(tokenizer, prompt)) + command.answer
        if length > command.length:
            raise ValueError(
                f"--length {command.length} is too small: a prompt with its answer has {length} tokens: "
                f"{prompt.text[:40]!r}"
            )
    return prompts
