"""RMU (Li et al. 2024): push hidden states on the forget set towards one random vector, and hold the others in place.

``B`` rows, ``T`` tokens a row, ``D`` residual dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.lm.processes import undistributed
from routed_rl.lm.streams import outputs
from routed_rl.lm.structure import blocks, feed_forward, stream_width
from routed_rl.lm.suppressors.suppressor import Reference, Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective


def squared_distance(stream: Tensor, other: Tensor) -> Tensor:
    """Return ``|h - h'|²``, as a mean over the last dimension."""
    return (stream - other).square().mean(dim=-1)


@dataclass(frozen=True)
class Rmu(Suppressor):
    """``|h(x_forget) - c u|² + a |h(x_retain) - h_before(x_retain)|²``, at the positions that predict targets.

    ``h`` is the residual stream after some blocks. ``u`` is one random unit vector, drawn once.

    The public code of gradient routing and UNDO reads the stream one block too early, so the last of the trained blocks
    learns nothing. Gradient routing's code also draws a new ``u`` in each step.
    """

    depth: int = 3
    """number of blocks before the residual stream that is pushed"""
    norm: float = 6.5
    """length of the vector to which forget states are pushed: c (gradient routing, section C: 100)"""
    retain_weight: float = 3.0
    """weight of holding retain states in place: a (gradient routing, section C: 200)"""
    trained: Literal["projections", "all"] = "projections"
    """what learns: the output projections of the MLPs in these blocks (all other weights are frozen), or all weights.
    In a mixture of experts, "projections" are all weights of the experts. "all" does not work with replicas, because
    they need a gradient for every weight"""
    projections: str | None = None
    """names of the MLPs' modules, for a model whose MLPs are not found by structure, as for routed_rl.lm.mlp"""

    recipe = brief(steps=100, learning_rate=1e-3)

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`. The original model is run too."""
        return 1 + FORWARD_PASS

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`. This freezes the weights that do not learn.

        Raises:
            ValueError: for more blocks than the model has, or MLPs that are not found, as :func:`~routed_rl.lm.mlp`.
        """
        names = blocks(model)
        if not 1 <= self.depth <= len(names):
            raise ValueError(f"depth must be within 1 … {len(names)} blocks, got {self.depth}")
        block = names[self.depth - 1]
        learning = []
        if self.trained == "projections":
            learning = [
                name for layer in range(self.depth) for name in feed_forward(model, layer, self.projections).last
            ]
        reference = Reference(model)
        direction = torch.randn(stream_width(model), generator=torch.Generator().manual_seed(seed))
        aim = self.norm * direction / direction.norm()
        model.requires_grad_(not learning)
        for name in learning:
            model.get_submodule(name).requires_grad_(True)

        def loss(trained: nn.Module, batch: Batch) -> Tensor:
            with outputs(undistributed(trained).get_submodule(block)) as seen:
                trained(**batch.inputs)
            stream, before = seen[0][:, :-1], reference.output(block, batch)[:, :-1]
            pushed = mean(squared_distance(stream, aim.to(stream)), forget_targets, batch)
            held = mean(squared_distance(stream, before), retain_targets, batch)
            return pushed + self.retain_weight * held

        return loss
