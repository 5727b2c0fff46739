"""Linear probe: whether a layer's state tells right answers from wrong ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import FORGET, Benchmark
from routed_rl.unlearning.scores.inside import last_states
from routed_rl.unlearning.scores.lens import best_layer
from routed_rl.unlearning.scores.reader import Reader
from routed_rl.unlearning.scores.score import Best, Field, Numbers, SetScore

FOLDS = 5
"""Parts of the cross-validation."""


def probe_accuracy(states: np.ndarray, right: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the balanced accuracy of a linear probe for each group, ``(groups,)``, from 0 to 1. Chance is 0.5.

    The probe is logistic regression on standardised states, with both classes of equal weight. It is trained on four
    fifths of the groups and tested on the rest, five times. Nothing is drawn at random. The balanced accuracy of a
    group is the mean of its share of right answers, and its share of wrong answers, that the probe recognises. All
    are NaN if a state is not finite. (Linear probes: Alain and Bengio 2016, arXiv 1610.01644.)

    >>> states = np.array([[1.0], [-1.0]] * 5)
    >>> probe_accuracy(states, np.array([True, False] * 5), np.arange(5).repeat(2)).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]

    Args:
        states: ``(rows, D)``.
        right: ``(rows,)`` bool: whether the row is a right answer. Each group has both kinds.
        groups: ``(rows,)`` of integers from 0: the question of each row.

    Raises:
        ValueError: for fewer than five groups.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not np.isfinite(states).all():
        return np.full(groups.max() + 1, np.nan)
    recognised = np.zeros(len(states), dtype=bool)
    for learned, tested in GroupKFold(FOLDS).split(states, right, groups):
        probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        probe.fit(states[learned], right[learned])
        recognised[tested] = probe.predict(states[tested]) == right[tested]
    of = [groups == group for group in range(groups.max() + 1)]
    return np.array([(recognised[own & right].mean() + recognised[own & ~right].mean()) / 2 for own in of])


@dataclass(frozen=True)
class LinearProbe(SetScore):
    """Balanced accuracy with which a linear probe tells right forget answers from perturbed ones, at the best layer.

    The probe reads the residual stream at the last token of the answer's text. It is tested on questions that it was
    not trained on; see :func:`probe_accuracy`. The best of several layers is above chance by luck where examples are
    few: compare with the retrained model. Small models that only memorise may have no such direction: then the score
    stays near chance, whatever the model knows. Right answers are the first paraphrases, or without
    any the answers themselves: as for :class:`TruthRatio`, perturbed answers should have their words.
    """

    of: str = FORGET
    """set of examples"""

    best: ClassVar[Best] = "low"
    field: ClassVar[Field] = "perturbed"

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return why the score is not defined; see :meth:`Score.undefined`."""
        few = len(self.asked(benchmark)) < FOLDS
        few_examples = f"fewer than {FOLDS} examples of the {self.of} set have perturbed answers"
        return super().undefined(benchmark) or (few_examples if few else None)

    def chance(self, benchmark: Benchmark) -> float | None:
        """Return 0.5; see :meth:`Score.chance`."""
        return 0.5

    def examples(self, reader: Reader) -> Numbers:
        """Return the balanced accuracy of each example and layer; see :meth:`Score.examples`."""
        asked = self.asked(reader.benchmark)
        answers = [((example.paraphrases or (example.answer,))[0], *example.perturbed) for example in asked]
        rows = [(group, place == 0, answer) for group, of in enumerate(answers) for place, answer in enumerate(of)]
        groups, right = np.array([group for group, _, _ in rows]), np.array([first for _, first, _ in rows])
        states = last_states(reader, [asked[group] for group in groups], [answer for _, _, answer in rows])
        by_layer = states.transpose(1, 0, 2)
        return {f"layer {layer}": probe_accuracy(of, right, groups) for layer, of in enumerate(by_layer, 1)}

    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the mean over examples at the best layer; see :meth:`Score.value`."""
        return best_layer(list(numbers.values()))
