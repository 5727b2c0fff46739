"""Fine-tuning on a few documents in one batch: repair after ablation, and gradient routing's relearning attack."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW

from routed_rl.lm.batches import WholeDocuments
from routed_rl.lm.losses import measured, next_token_loss


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning on a few documents, all in each step (gradient routing, section C)."""

    steps: int = 20
    """gradient steps at most"""
    learning_rate: float = 5e-4
    """AdamW's learning rate, constant"""
    every: int = 1
    """steps between measurements; there is also one after the last step"""
    patience: int = 3
    """stop after this many rises in a row of the first measured loss"""


def fine_tune(
    model: nn.Module,
    documents: WholeDocuments,
    settings: FineTuning,
    measure: Callable[[nn.Module], dict[str, float]],
    on_step: Callable[[], None] = lambda: None,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Return a fine-tuned copy of a model, and what was measured during fine-tuning.

    Args:
        documents: they all form the batch of every step.
        measure: returns named losses. The first one decides when to stop and which step is best.

    Returns:
        The copy at the step with the lowest first loss, and the measurements, each with its "step", from 0 on.

    Raises:
        FloatingPointError: if the first loss is no longer a finite number.
    """
    model = copy.deepcopy(model)
    optimizer = AdamW(model.parameters(), settings.learning_rate, (0.9, 0.95), weight_decay=0.1)
    with measured(model, documents) as batches:
        parts = [batch for batch, _ in batches]
    count = sum(int(part.scored.sum()) for part in parts)
    history = [{"step": 0, **measure(model)}]
    key = next(name for name in history[0] if name != "step")
    best, rises = copy.deepcopy(model.state_dict()), 0
    model.train()
    for step in range(1, settings.steps + 1):
        for part in parts:
            (next_token_loss(model, part) / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step()
        if step % settings.every and step < settings.steps:
            continue
        history.append({"step": step, **measure(model)})
        if not math.isfinite(history[-1][key]):
            raise FloatingPointError(
                f"after {step} steps of fine-tuning the {key} loss is {history[-1][key]}: lower the learning rate"
            )
        if history[-1][key] <= min(entry[key] for entry in history):
            best = copy.deepcopy(model.state_dict())
        rises = rises + 1 if history[-1][key] > history[-2][key] else 0
        if rises == settings.patience:
            break
    model.load_state_dict(best)
    return model, history
