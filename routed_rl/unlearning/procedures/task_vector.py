"""Task-vector negation (Ilharco et al. 2023, Editing models with task arithmetic): subtract what fine-tuning adds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import promoted, token_losses
from routed_rl.lm.suppressors import Suppressor
from routed_rl.lm.suppressors.suppressor import brief, mean
from routed_rl.lm.training import Objective
from routed_rl.unlearning.procedures.procedure import Procedure, Stage

NOTHING = np.array([], dtype=np.int64)


@dataclass(frozen=True)
class FineTuning(Suppressor):
    """The next-token loss, with which a copy learns the forget set."""

    recipe = brief(steps=60, learning_rate=3e-4)

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""

        def scored(batch: Batch) -> torch.Tensor:
            return batch.scored

        return lambda trained, batch: mean(token_losses(trained, batch), scored, batch)


@dataclass(frozen=True)
class TaskVector(Procedure):
    """``θ - s * (θ_tuned - θ)``, where ``θ_tuned`` is a copy of the model that was fine-tuned on the forget set.

    The retain set is not used. The paper chooses the largest ``s`` that keeps the performance on a control task, so try
    several. A model that knows the forget set well learns little more from it. Its task vector is then short, and ``s``
    must be larger than 1. If the retain set is much like the forget set, both are lost together.
    """

    scale: float = 4.0
    """how much of the difference is subtracted: s"""

    recipe = brief(steps=60, learning_rate=3e-4)

    @property
    def stages(self) -> int:
        """One: the fine-tuning."""
        return 1

    def run(self, model: nn.Module, stage: Stage, forget: np.ndarray, retain: np.ndarray, seed: int) -> nn.Module:
        """Return the model without the task vector; see :meth:`Procedure.run`."""
        tuned = stage(model, forget, NOTHING, FineTuning(), seed)
        return subtracted(model, tuned, self.scale)


@torch.no_grad()
def subtracted(model: nn.Module, tuned: nn.Module, scale: float) -> nn.Module:
    """Return ``tuned``, in place, with the weights ``θ - s * (θ_tuned - θ)``. Weights that did not learn stay the same.

    Weights in half precision are computed in float32, and rounded once.
    """
    before = dict(model.named_parameters())
    for name, parameter in tuned.named_parameters():
        own = promoted(before[name])
        parameter.copy_(own - scale * (promoted(parameter) - own))
    return tuned
