"""The documents of a corpus by use: training with or without a label, repair, tests and attacks."""

from __future__ import annotations

import numpy as np

from routed_rl.lm.batches import Batches, WholeDocuments
from routed_rl.lm.era import token_weights
from routed_rl.lm.inputs import Text
from routed_rl.options.era import Unlearn
from routed_rl.routing import LabelNoise
from routed_rl.runs import derive_seed
from routed_rl.wording import written

ATTACK_POOL = 1 / 3
"""Share of the held-out forget documents that is for attacks. The others are test documents."""
SAMPLES = 3
"""Number of test documents whose beginnings are continued in samples."""
COUNTED = 25_000
"""Documents of each kind whose tokens are counted for token weights (gradient routing, section C)."""


class Division:
    """The documents of one run, by use.

    Attributes:
        train, marked, others: all training documents, the labelled ones, and the unlabelled ones.
        test: the test documents, by kind.
        pool: held-out forget documents, for attacks.
        repair, selection: retain documents that train the repair, and that select its best step.
        candidates, chosen: unlabelled documents, and how many of them are chosen for the second repair.
        token_weight, routed: see :meth:`_token_weights`.

    Raises:
        ValueError: for a use without documents, or with too few documents for an attack.
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
                f"{written('--attack.documents', max(command.attack.documents))} is more than the {pool} held-out "
                "forget documents for attacks: use more --documents"
            )
        retain = corpus.documents("validation", "retain")[: command.test_documents]
        self.test = {"forget": self.whole(test), "retain": self.whole(retain)}
        self.prompts = test[:SAMPLES]
        fine = order.permutation(corpus.documents("train", "retain"))
        count = command.repair.documents
        self.repair, self.selection = fine[:count], fine[count : count + command.repair.selection]
        self.token_weight, self.routed = self._token_weights()
        candidates = np.random.default_rng(derive_seed(seed, "repair")).permutation(self.others)
        self.candidates = candidates[: 2 * command.repair.chosen]
        self.chosen = min(command.repair.chosen, len(self.candidates) // 2)

    def batches(self, documents: np.ndarray, batch_size: int, seed: int, pack: bool, option: str) -> Batches:
        """Return batches of documents for training. ``option`` is the one that sets the size of a batch."""
        return Batches(self.text.corpus, documents, self.command.length, batch_size, seed, self.labelled, pack, option)

    def whole(self, documents: np.ndarray) -> WholeDocuments:
        """Return documents for measurement, repair or an attack."""
        return WholeDocuments(self.text.corpus, documents, self.labelled)

    def attackers(self, count: int, repeat: int = 0) -> WholeDocuments:
        """Return the forget documents of one attack: so many documents of the pool, others in each repetition."""
        chosen = np.random.default_rng(derive_seed(self.command.seed, "attack", count, repeat))
        return self.whole(chosen.permutation(self.pool)[:count])

    def _token_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights with which original units learn labelled tokens, and which tokens count as routed.

        Weights are ``(V,)`` from 0 to 1. Routed tokens are ``(V,)`` bool; losses on them are reported on their own.
        """
        corpus, size = self.text.corpus, max(self.text.tokenizer.get_vocab().values()) + 1
        if self.command.tokens:
            return np.zeros(size), np.isin(np.arange(size), corpus.about["forget_tokens"])
        if self.command.per == "token":  # tokens are labelled one by one
            sample = self.train[:COUNTED]
            places = np.concatenate([np.arange(*corpus.starts[document : document + 2]) for document in sample])
            tokens, marks = corpus.tokens[places], corpus.forget[places]
            return np.zeros(size), 2 * np.bincount(tokens[marks], minlength=size) > np.bincount(tokens, minlength=size)
        forget, retain = (corpus.counts(documents[:COUNTED], size) for documents in (self.marked, self.others))
        weight = token_weights(forget, retain, self.command.bias)
        if self.command.mode == "forward":  # units are either off or on
            weight = np.where(weight < 0.5, 0.0, 1.0)
        return weight, (weight < 0.5) & (len(self.marked) > 0)
