"""Layered Unlearning (Qian et al. 2025, arXiv 2505.09500): unlearn a growing part of the forget set, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from routed_rl.errors import UserError
from routed_rl.lm.suppressors import Suppressor
from routed_rl.lm.training import Training
from routed_rl.runs import derive_seed
from routed_rl.unlearning.procedures.procedure import Procedure, Stage, made_suppressor


@dataclass(frozen=True)
class Layered(Procedure):
    """Stage i of k unlearns folds 1 … i of the forget set, and retains folds i + 1 … k and the retain set.

    Each stage starts from the model of the stage before, and compares with that model. The folds are random and about
    equally large. A fold must fill a batch, so small forget sets need few folds or small batches. Half of a batch is of
    retain documents. Those are drawn from the later folds and the retain set together.
    """

    of: str | type[Suppressor] | Suppressor = "npo"
    """the suppression method of each stage"""
    folds: int = 3
    """number of folds and stages: k"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 1:
            raise UserError(f"folds of Layered must be 1 or more, got {self.folds}")
        made_suppressor(self.of, "of")

    @property
    def recipe(self) -> Training:
        """The training settings of the method, for each stage."""
        return made_suppressor(self.of, "of")[0].recipe

    @property
    def stages(self) -> int:
        """One for each fold."""
        return self.folds

    @property
    def alternatives(self) -> tuple[str, ...] | None:
        """Those of the method."""
        return made_suppressor(self.of, "of")[0].alternatives

    def run(self, model: nn.Module, stage: Stage, forget: np.ndarray, retain: np.ndarray, seed: int) -> nn.Module:
        """Return the model of the last stage; see :meth:`Procedure.run`.

        Raises:
            UserError: for more folds than forget documents.
        """
        if self.folds > len(forget):
            raise UserError(f"folds must be at most the {len(forget)} forget documents, got {self.folds}")
        method, _ = made_suppressor(self.of, "of")
        order = np.random.default_rng(derive_seed(seed, "folds")).permutation(len(forget))
        folds = [np.sort(forget[places]) for places in np.array_split(order, self.folds)]
        for i in range(self.folds):
            now, later = np.concatenate(folds[: i + 1]), np.concatenate([*folds[i + 1 :], retain])
            model = stage(model, now, later, method, derive_seed(seed, "stage", i))
        return model
