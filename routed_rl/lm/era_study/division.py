"""What each document of a corpus is for: training with or without a label, repair, tests and attacks."""

from __future__ import annotations

import numpy as np

from routed_rl.lm.batches import Batches
from routed_rl.lm.era import token_weights
from routed_rl.lm.inputs import Text
from routed_rl.options.era import Unlearn
from routed_rl.routing import LabelNoise
from routed_rl.runs import derive_seed

ATTACK_POOL = 1 / 3
"""Of the topic's held-out documents, how many are for attacks; the others are the test."""
SAMPLES = 3
"""Test documents whose beginnings are continued."""
COUNTED = 25_000
"""Documents of each kind whose words are counted (gradient routing, section C)."""


class Division:
    """A corpus divided as the options and the seed say.

    Attributes:
        train, marked, others: documents that are trained on: all, those labelled, and those not.
        test: batches of the test documents, by kind.
        pool: held-out documents of the topic, for attacks.
        repair, selection: training documents that are known to be fine.
        candidates, chosen: documents that nobody labelled, and how many of them are chosen for repair.
        token_weight, routed: see :meth:`_token_weights`.

    Raises:
        ValueError: for a part that has no documents, or not enough for an attack.
    """

    def __init__(self, command: Unlearn, text: Text) -> None:
        self.command, self.text = command, text
        corpus, seed = text.corpus, command.seed
        noise = LabelNoise(command.miss_rate, command.flip_rate)
        self.labelled = corpus.labelled(command.labelled, noise, derive_seed(seed, "labels"))
        self.train = corpus.documents("train")
        self.marked = self.train[self.labelled[self.train]]
        self.others = self.train[~self.labelled[self.train]]
        order = np.random.default_rng(derive_seed(seed, "held out"))
        forget = corpus.documents("validation", "forget")
        pool = int(len(forget) * ATTACK_POOL)
        forget = order.permutation(forget)
        self.pool, test = forget[:pool], forget[pool:][: command.test_documents]
        if pool < max(command.attack.documents, default=0):
            raise ValueError(
                f"--attack.documents {max(command.attack.documents)} is more than the {pool} held-out documents of the "
                "topic that are for attacks: take more --documents"
            )
        retain = corpus.documents("validation", "retain")[: command.test_documents]
        self.test = {"forget": self.batches(test), "retain": self.batches(retain)}
        self.prompts = test[:SAMPLES]
        fine = order.permutation(corpus.documents("train", "retain"))
        count = command.repair.documents
        self.repair, self.selection = fine[:count], fine[count : count + command.repair.selection]
        self.token_weight, self.routed = self._token_weights()
        candidates = np.random.default_rng(derive_seed(seed, "repair")).permutation(self.others)
        self.candidates = candidates[: 2 * command.repair.chosen]
        self.chosen = min(command.repair.chosen, len(self.candidates) // 2)
        """how many documents are chosen for repair, of these candidates"""

    def batches(self, documents: np.ndarray, batch_size: int | None = None, seed: int | None = None) -> Batches:
        """Batches of documents; None: all of them at once, in the order that they are given."""
        length = self.command.length
        if batch_size is None:  # as many rows as they need, of a length that they fill
            total = int(np.diff(self.text.corpus.starts)[documents].sum())
            length = total // -(-total // (length - 1)) + 1
        return Batches(self.text.corpus, documents, length, batch_size, seed, self.labelled)

    def _token_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """How much the original units learn of each token where it is labelled, ``(V,)`` within 0 … 1; and which tokens
        are reported on as those that are routed, ``(V,)`` bool."""
        corpus, size = self.text.corpus, max(self.text.tokenizer.get_vocab().values()) + 1
        if self.command.tokens:
            return np.zeros(size), np.isin(np.arange(size), corpus.about["forget_tokens"])
        if self.command.per == "token":  # they are labelled one by one
            sample = self.train[:COUNTED]
            places = np.concatenate([np.arange(*corpus.starts[document : document + 2]) for document in sample])
            tokens, marks = corpus.tokens[places], corpus.forget[places]
            return np.zeros(size), 2 * np.bincount(tokens[marks], minlength=size) > np.bincount(tokens, minlength=size)
        forget, retain = (corpus.counts(documents[:COUNTED], size) for documents in (self.marked, self.others))
        weight = token_weights(forget, retain, self.command.bias)
        if self.command.mode == "forward":  # units are silent or not
            weight = np.where(weight < 0.5, 0.0, 1.0)
        return weight, (weight < 0.5) & (len(self.marked) > 0)
