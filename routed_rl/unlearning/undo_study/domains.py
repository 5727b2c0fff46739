"""A corpus of ``routed-rl undo`` divided: what is trained on, measured, labelled, and in an attacker's hands."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import nn

from routed_rl.errors import user_input
from routed_rl.lm import (
    Batches,
    Prompt,
    completion_accuracy,
    encode_prompt,
    evaluate,
    exact_match,
    read_prompts,
    word_problem_prompts,
)
from routed_rl.lm.inputs import TEXT_SEED, Text
from routed_rl.options.undo import UndoOptions
from routed_rl.routing import LabelNoise
from routed_rl.runs import derive_seed
from routed_rl.unlearning.undo_study.harness import harness_value


class Domains:
    """A corpus divided as the options say.

    Attributes:
        retain, forget: training documents of each kind.
        mixture: both, those to be forgotten so often that they are about as many as the others, where they are fewer.
        measured: batches of what is measured, by kind; where not the loss is, of what its rise is measured on.
        prompts: what is to be gone on from, where that is measured.

    Raises:
        ValueError: if a part has no documents, or answers are to be measured in documents that are not of one length.
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
        self.measured: dict[str, Batches] = {}
        kinds: tuple[tuple[Literal["retain", "forget"], np.ndarray], ...]
        kinds = (("retain", self.retain), ("forget", self.forget))
        for kind, trained in kinds:
            # Without a share for validation, what is measured is what has been trained on.
            documents = self.corpus.documents("validation", kind) if command.validation is not None else trained
            documents = order.permutation(documents)[: command.test_documents]
            length = self._row(documents) if command.metric == "answers" else command.length
            self.measured[kind] = Batches(self.corpus, documents, length)

    def _row(self, documents: np.ndarray) -> int:
        """How long rows are that have a document each."""
        lengths = np.diff(self.corpus.starts)[documents]
        if lengths.min() != lengths.max() or not 1 <= self.command.answer < lengths.min():
            raise ValueError(
                f"--metric answers needs documents of one length, longer than their answers of {self.command.answer} "
                f"tokens, and these have {lengths.min()} to {lengths.max()}: take --metric loss"
            )
        return int(lengths[0]) + 1

    def labelled(self, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Training documents that somebody has labelled as to be forgotten, rightly or not; and those that are to be
        retained, but for the ones that are labelled so.

        Raises:
            ValueError: if there are none of a kind.
        """
        noise = LabelNoise(self.command.miss_rate, self.command.flip_rate)
        labelled = self.corpus.labelled(share, noise, derive_seed(seed, "labels"))
        found = np.concatenate([self.retain, self.forget])
        found = found[labelled[found]]
        if not len(found):
            raise ValueError(f"with --labelled {share} nothing is labelled, of {len(self.forget)} documents")
        retain = self.retain[~labelled[self.retain]]
        if not len(retain):
            raise ValueError(f"with --flip-rate {self.command.flip_rate} all is labelled as to be forgotten")
        return found, retain

    def without(self, share: float, seed: int) -> np.ndarray:
        """The mixture, less what is labelled where a share of what is to be forgotten is; of 1 less all of that."""
        if share in (0, 1):
            return self.retain if share else self.mixture
        return self._mixture(self.forget, self.labelled(share, seed)[0])

    def _mixture(self, forget: np.ndarray, without: np.ndarray | None = None) -> np.ndarray:
        documents = np.concatenate([self.retain, np.repeat(forget, self._repeats)])
        return documents if without is None else documents[~np.isin(documents, without)]

    def batches(self, documents: np.ndarray, batch_size: int, seed: int) -> Batches:
        """Rows of documents in a new order each epoch; few of them are repeated until they fill a batch."""
        length = self.command.length
        tokens = int(np.diff(self.corpus.starts)[documents].sum())
        repeats = -(-batch_size * (length - 1) // max(tokens, 1))
        return Batches(self.corpus, np.tile(documents, max(repeats, 1)), length, batch_size, seed)

    def measure(self, model: nn.Module, kind: str) -> float:
        """How much a model knows of one kind, by the metric; what has diverged may give no number, or
        FloatingPointError."""
        batches = self.measured[kind]
        if self.command.metric == "answers":
            return exact_match(model, batches, self.command.answer)
        if self.command.metric == "completions":
            prompts = [prompt for prompt in self.prompts if prompt.forget == (kind == "forget")]
            return completion_accuracy(model, self.tokenizer, prompts, self.command.answer)
        if self.command.metric == "lm-eval":
            settings = self.command.lm_eval
            task = settings.retain if kind == "retain" else settings.forget
            with user_input():
                return harness_value(model, self.tokenizer, task, settings.value, settings.limit, settings.include)
        return evaluate(model, batches).mean()

    def measures(self, model: nn.Module) -> dict[str, float]:
        """:meth:`measure` of both kinds."""
        return {kind: self.measure(model, kind) for kind in self.measured}

    def attacker(self, seed: int) -> Batches:
        """What the attack trains on: documents to be forgotten, and as many retained ones as the options say."""
        relearning = self.command.relearn
        order = np.random.default_rng(derive_seed(seed, "attacker"))
        forget, share = self.forget, relearning.retain_share
        if relearning.others:
            forget = np.setdiff1d(forget, self.measured["forget"].documents)
            if not len(forget):
                raise ValueError("--relearn.others leaves the attacker nothing: lower --test-documents")
        if share == 1:
            documents = order.permutation(self.retain)[: relearning.examples]
        else:
            forget = order.permutation(forget)[: relearning.examples]
            count = int(-(-len(forget) * share // (1 - share)))
            documents = np.concatenate([forget, order.choice(self.retain, count, replace=count > len(self.retain))])
        return self.batches(documents, relearning.batch_size, derive_seed(seed, "attack"))


def higher_is_better(command: UndoOptions) -> bool:
    """Whether the metric grows with what a model knows."""
    return command.metric != "loss"


def read_study_prompts(command: UndoOptions, tokenizer: Any) -> list[Prompt]:
    """The prompts of the options; ValueError or OSError if there are none, they cannot be read, or are too long."""
    if command.prompts is not None:
        prompts = read_prompts(command.prompts)
    elif command.corpus == "word-problems":
        prompts = word_problem_prompts(command.test_documents, TEXT_SEED)
    else:
        raise ValueError("--metric completions needs --prompts, but with --corpus word-problems")
    for prompt in prompts:
        answer = len(tokenizer.encode(f" {prompt.answer.strip()}", add_special_tokens=False))
        if answer > command.answer:
            raise ValueError(f"--answer {command.answer} tokens are too few for {prompt.answer!r}, which has {answer}")
        length = len(encode_prompt(tokenizer, prompt)) + command.answer
        if length > command.length:
            raise ValueError(
                f"--length {command.length} tokens are too few for a prompt with its answer, of {length}: "
                f"{prompt.text[:40]!r}"
            )
    return prompts
