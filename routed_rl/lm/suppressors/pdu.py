"""PDU, primal-dual unlearning (Entesari et al. 2025): flatten logits on the forget set, with a limit to retain loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import target_logits, target_losses
from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.lm.processes import processes
from routed_rl.lm.suppressors.suppressor import ReferenceLosses, Suppressor, brief, forget_targets, mean, retain_targets
from routed_rl.lm.training import Objective


def squared_margin(logits: Tensor) -> Tensor:
    """Return ``(max_v z(v) - mean_v z(v))²`` of logits, over the last dimension."""
    return (logits.amax(dim=-1) - logits.mean(dim=-1)).square()


@dataclass(frozen=True)
class Pdu(Suppressor):
    """``squared_margin`` on the forget set, with a limit to the retain loss: ``(1 + e)`` times that before.

    The loss of a step is ``margin + d * (CE_retain - (1 + e) * CE_retain_before)``. After the step, the dual variable
    ``d`` becomes ``max(0, d + r * (CE_retain - (1 + e) * CE_retain_before))``. Both retain losses are those of the
    step's batch. Checkpoints save ``d``, so a resumed training is the same to the byte.
    """

    retain_weight: float = 1.0
    """the dual variable before the first step: d"""
    slack: float = 0.1
    """how far the retain loss may rise, as a share of the retain loss before: e"""
    dual_rate: float = 1.0
    """step size of the dual variable: r"""

    recipe = brief(steps=60, learning_rate=3e-4)

    @property
    def cost(self) -> float:
        """:attr:`Suppressor.cost`. The original model is run too, unless its losses are known."""
        return 1 + FORWARD_PASS

    def loss(self, model: nn.Module, seed: int) -> Objective:
        """Return the loss; see :meth:`Suppressor.loss`."""
        return _Lagrangian(self, model)


class _Lagrangian:
    """The loss of :class:`Pdu`.

    Attributes:
        state: the dual variable; and for the last step that was begun, the retain loss above the limit and the share of
            the retain targets, each summed over the parts that were computed. The next step uses them up.
    """

    def __init__(self, settings: Pdu, model: nn.Module) -> None:
        self._settings, self._reference = settings, ReferenceLosses(model, retain_targets)
        self._whole: Batch | None = None
        own = next(model.parameters()).device
        device = own if own.type != "meta" else None  # a dry run then computes on the CPU
        dual = torch.tensor(settings.retain_weight, dtype=torch.float64, device=device)
        self.state = {"dual": dual, "above": torch.zeros(2, dtype=torch.float64, device=device)}

    def __call__(self, trained: nn.Module, batch: Batch) -> Tensor:
        if batch.whole is not self._whole:
            self._whole = batch.whole
            self._update()
        logits = target_logits(trained, batch)
        losses = target_losses(logits, batch)
        count = max(int(retain_targets(batch.whole).sum()), 1)
        limit = (1 + self._settings.slack) * self._reference(batch).sum() / count
        above = mean(losses, retain_targets, batch) - limit
        if torch.is_grad_enabled():
            part = torch.stack([above.detach(), retain_targets(batch).sum() / count]).double()
            if processes() > 1:  # so the state is the same everywhere, also where it is saved
                dist.all_reduce(part)
            self.state["above"] += part
        return mean(squared_margin(logits), forget_targets, batch) + self.state["dual"].to(above.dtype) * above

    @torch.no_grad()
    def _update(self) -> None:
        """Move the dual variable by the retain loss of the last step."""
        above, share = self.state["above"]
        self.state["dual"] += self._settings.dual_rate * above / share.clamp_min(1e-9)
        self.state["dual"].clamp_(min=0.0)
        self.state["above"].zero_()
