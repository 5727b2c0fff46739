"""The documents of an UNDO study: for training, measurement, suppression and the attack."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
from torch import nn

from routed_rl.errors import UserError, user_input
from routed_rl.lm import Batches, Document, WholeDocuments, keeps_apart
from routed_rl.lm.alternatives import Alternatives, answered, chosen_answers, tokenised_questions
from routed_rl.lm.inputs import Text, read_corpus
from routed_rl.options.undo import UndoOptions
from routed_rl.routing import LabelNoise
from routed_rl.runs import derive_seed
from routed_rl.unlearning.metrics import Kind, Metric
from routed_rl.unlearning.tuning import HELD_OUT, TUNED, some
from routed_rl.unlearning.undo_study.measuring import make_metric
from routed_rl.unlearning.undo_study.members import stop_metric
from routed_rl.wording import written

KINDS: tuple[Kind, ...] = get_args(Kind)


class Domains:
    """The documents of a study, by use.

    Attributes:
        retain, forget: training documents of each set.
        mixture: both sets. If the forget set is smaller, it is repeated to about the size of the retain set.

    Raises:
        ValueError: if a part has no documents.
    """

    def __init__(self, command: UndoOptions, text: Text) -> None:
        self.command, self.corpus, self.tokenizer = command, text.corpus, text.tokenizer
        self.retain, self.forget = self.corpus.documents("train", "retain"), self.corpus.documents("train", "forget")
        self._repeats = max(round(len(self.retain) / len(self.forget)), 1)
        self.mixture = self._mixture(self.forget)
        self._documents: dict[tuple[Kind, int], WholeDocuments] = {}
        self._metrics: dict[tuple[str, int], Metric] = {}

    def documents(self, kind: Kind, count: int) -> WholeDocuments:
        """Return documents on which models are measured: at most ``count`` of a kind."""
        if (kind, count) not in self._documents:
            order = np.random.default_rng(derive_seed(0, "measured"))
            for each, trained in (("retain", self.retain), ("forget", self.forget)):
                # Without validation documents, models are measured on training documents.
                held_out = self.command.validation is not None
                documents = self.corpus.documents("validation", each) if held_out else trained  # type: ignore[arg-type]
                documents = order.permutation(documents)[:count]
                self._documents[each, count] = WholeDocuments(self.corpus, documents)  # type: ignore[index]
        return self._documents[kind, count]

    def metric(self, name: str, count: int) -> Metric:
        """Return a metric for this many documents of each kind.

        Raises:
            ValueError, OSError: as :func:`~routed_rl.unlearning.undo_study.measuring.make_metric`.
        """
        if (name, count) not in self._metrics:
            self._metrics[name, count] = make_metric(self.command, self.tokenizer, name, count)
        return self._metrics[name, count]

    def check_metrics(self) -> None:
        """Raise ValueError, OSError or MissingExtraError if a metric of the options cannot be measured."""
        counts = [(name, self.command.test_documents) for name in self.command.metric]
        for name, count in (*counts, (stop_metric(self.command), self.command.distil.documents)):
            for kind in KINDS:
                self.metric(name, count).check(self.tokenizer, self.documents(kind, count), kind)

    def measure(self, model: nn.Module, name: str, kind: Kind, count: int) -> float:
        """Return a metric of a model on documents of one kind.

        A diverged model gives NaN, infinity or FloatingPointError.
        """
        with user_input():
            return self.metric(name, count).measure(model, self.tokenizer, self.documents(kind, count), kind)

    def measures(self, model: nn.Module, name: str, count: int) -> dict[str, float]:
        """:meth:`measure` of both kinds."""
        return {kind: self.measure(model, name, kind, count) for kind in KINDS}

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
                f"{written('--labelled', share)} labels none of {len(self.forget)} forget documents: use a larger share"
            )
        retain = self.retain[~labelled[self.retain]]
        if not len(retain):
            raise ValueError(
                f"{written('--flip-rate', self.command.flip_rate)} labels every retain document as forget: lower it"
            )
        return found, retain

    def alternatives(self, method: str, pool: tuple[str, ...], documents: np.ndarray, seed: int) -> Alternatives:
        """Return forget documents with answers of a pool, for a method that teaches another answer.

        Raises:
            UserError: for a method without a pool, or documents without a question and one answer.
            ValueError: if the texts have changed since they were tokenised.
        """
        if not pool:
            raise UserError(
                f"{written('--suppress', method)} needs an alternative answer for each question, which a study does "
                "not have: use unlearn(…, alternatives=…), and give the study its result by --teachers"
            )
        wanted: dict[int, Document | None] = dict.fromkeys(documents.tolist())
        read = 0
        for number, document in enumerate(read_corpus(self.command)):
            read = number + 1
            if number in wanted:
                wanted[number] = document
        found = [document for document in wanted.values() if document is not None]
        if read != len(self.corpus.validation) or len(found) < len(wanted):
            raise ValueError(f"the corpus has {len(self.corpus.validation)} documents, but its texts now have {read}")
        answers = chosen_answers(method, None, pool, len(found), seed)
        questions = answered(method, found, answers)
        return Alternatives(documents, tokenised_questions(questions, self.tokenizer, self.command.score))

    def tuning(self, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return documents on which settings of suppressors are tried, and on which no model is measured.

        Args:
            share, seed: as for :meth:`labelled`.

        Returns:
            Labelled documents; retain documents for training; and further ones, on which trials are measured.

        Raises:
            ValueError: if a kind has fewer than four documents.
        """
        apart = []
        for kind, documents in zip(("forget", "retain"), self.labelled(share, seed), strict=True):
            if self.command.validation is None:
                measured = self.documents(kind, self.command.test_documents).documents  # type: ignore[arg-type]
                documents = np.setdiff1d(documents, measured)
            try:
                chosen = some(len(documents), TUNED, derive_seed(seed, "tune", kind))
            except ValueError as error:
                raise ValueError(f"--tune: {error} that are not measured: lower --test-documents") from None
            apart.append(documents[list(chosen)])
        held_out = math.ceil(HELD_OUT * len(apart[1]))
        return apart[0], apart[1][held_out:], apart[1][:held_out]

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
        self,
        model: nn.Module,
        documents: np.ndarray,
        batch_size: int,
        seed: int,
        labelled: bool = False,
        pack: bool = True,
    ) -> Batches:
        """Return batches of documents for a model, in a new order each epoch. Too few for a batch are repeated.

        Args:
            labelled: whether all of them have the label "forget".
            pack: whether short documents may share a row.
        """
        pack, length = pack and self.command.pack and keeps_apart(model), self.command.length
        rows = float(len(documents))  # at least
        if pack:
            rows = np.minimum(np.diff(self.corpus.starts)[documents], length).sum() / length
        repeated = np.tile(documents, math.ceil(batch_size / rows))
        labels = np.isin(np.arange(len(self.corpus.validation)), documents) if labelled else None
        return Batches(self.corpus, repeated, length, batch_size, seed, labels, pack)

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
            forget = np.setdiff1d(forget, self.documents("forget", self.command.test_documents).documents)
            if not len(forget):
                raise ValueError("--relearn.others leaves the attacker no forget document: lower --test-documents")
        if share == 1:
            return order.permutation(self.retain)[: relearning.examples]
        forget = order.permutation(forget)[: relearning.examples]
        count = int(-(-len(forget) * share // (1 - share)))
        return np.concatenate([forget, order.choice(self.retain, count, replace=count > len(self.retain))])
