"""The relearning attack at many learning rates: how much of what was forgotten can be had back at all, and how soon?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from routed_rl.lm.training import Source, Training, train

SMALLEST_GAP = 0.02
"""Of accuracy or nats: a smaller one between oracle and teacher is noise, and nothing can be said in shares of it."""


def relearn(
    model: nn.Module,
    source: Source,
    steps: int,
    learning_rate: float,
    measured: Collection[int],
    measure: Callable[[nn.Module], dict[str, float]],
    *,
    rank: int | None = None,
    accumulate: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[dict[str, float]]:
    """Attack a model: fine-tune a copy of it with AdamW at a constant learning rate, in float32, and measure it (UNDO;
    there with weights in bfloat16, which the lower learning rates hardly move).

    Args:
        source: what the attacker has.
        measured: steps after which the copy is measured; 0 is before the first.
        rank: of low-rank adapters on all linear layers but the last, which the attacker trains instead (LoRA, Hu et al.
            2021); None: all weights.
        accumulate: parts in which a batch is computed, to save memory.
        precision: of the matrix products; weights are float32.

    Returns:
        What was measured, with the "step"; an attack that diverges ends there.

    Raises:
        FloatingPointError: if what is measured before the attack is no number.
    """
    tuned = copy.deepcopy(model).float().requires_grad_(True)
    if rank is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tuned = get_peft_model(tuned, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))  # type: ignore[arg-type]
    history: list[dict[str, float]] = []

    def look(step: int) -> None:
        if step in measured:
            found = measure(tuned)
            if not all(map(math.isfinite, found.values())):
                raise FloatingPointError(f"by step {step} of the attack something measured is no number")
            history.append({"step": step, **found})

    def after(step: int) -> None:
        look(step + 1)
        on_step(step)

    look(0)
    settings = Training(
        steps,
        learning_rate,
        warmup=0,
        final=1.0,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        accumulate=accumulate,
        precision=precision,
    )
    with suppress(FloatingPointError):
        train(tuned, source, settings, seed=seed, on_step=after)
    return history


@dataclass(frozen=True)
class WorstCase:
    """The best that an attacker gets, at each step, with whichever learning rate is best there.

    Attributes:
        steps: after which it was measured.
        forget: what is known again of what was forgotten.
        learning_rate: with which.
        inside: whether, at the last step, neither the lowest nor the highest learning rate is the best one alone, so
            that the grid is not what makes the model look robust.
    """

    steps: tuple[int, ...]
    forget: tuple[float, ...]
    learning_rate: tuple[float, ...]
    inside: bool


def worst_case(
    curves: Mapping[float, Sequence[Mapping[str, float]]], higher_is_better: bool, kept: float | None = None
) -> WorstCase:
    """The worst case of attacks by learning rate, at every step.

    Args:
        curves: as :func:`relearn` gives them, with "forget" and "retain".
        higher_is_better: of both: whether they are accuracies, not losses.
        kept: the attacker must keep so large a share of what is retained: 0.9 of the accuracy before the attack, or a
            loss of no more than a 0.9th of that before it. None: he may break everything else.

    Raises:
        ValueError: if nothing was measured.
    """
    if not curves or not all(curves.values()):
        raise ValueError("an attack needs at least one learning rate, and a measurement before its first step")
    sign = 1.0 if higher_is_better else -1.0
    best: dict[int, tuple[float, float]] = {}
    for rate in sorted(curves):
        before = curves[rate][0].get("retain", math.nan)
        for entry in curves[rate]:
            if kept is not None and sign * entry["retain"] < sign * before * (kept if higher_is_better else 1 / kept):
                continue
            step, forget = int(entry["step"]), entry["forget"]
            if step not in best or sign * forget > sign * best[step][0]:
                best[step] = (forget, rate)
    steps = tuple(sorted(best))
    at_end = {
        rate: sign * entry["forget"] for rate, curve in curves.items() for entry in curve if entry["step"] == steps[-1]
    }
    ends = [at_end.pop(rate) for rate in {min(curves), max(curves)} if rate in at_end]
    return WorstCase(
        steps,
        tuple(best[step][0] for step in steps),
        tuple(best[step][1] for step in steps),
        max(at_end.values(), default=-math.inf) >= max(ends, default=-math.inf),
    )


def robustness(forget: float, of_teacher: float, of_oracle: float) -> float:
    """``(P - P_teacher) / (P_oracle - P_teacher)``, of what worst-case attacks get at their end: 0 as fragile as the
    suppressed model, 1 as robust as one that never saw what is forgotten (UNDO); NaN where
    these two do not differ."""
    gap = of_oracle - of_teacher
    return (forget - of_teacher) / gap if abs(gap) >= SMALLEST_GAP else math.nan


# --- how far a model is from another ---------------------------------------------------------------


@torch.no_grad()
def weight_distance(model: nn.Module, original: nn.Module) -> float:
    """``|theta - theta_original| / |theta_original|``, over all parameters together."""
    pairs = zip(model.parameters(), original.parameters(), strict=True)
    squares = [((a.double() - b.double()).square().sum(), b.double().square().sum()) for a, b in pairs]
    return math.sqrt(sum(float(change) for change, _ in squares) / sum(float(whole) for _, whole in squares))


@torch.no_grad()
def barrier(model: nn.Module, original: nn.Module, measure: Callable[[nn.Module], float], points: int = 5) -> float:
    """Linear mode connectivity: by how much the loss between two models, on the line that joins their weights, is at
    most above the line that joins their losses; 0 for models in one basin (Frankle et al. 2020).

    Args:
        measure: a loss.
        points: weights between the two at which it is measured, evenly spaced.
    """
    between = copy.deepcopy(model)
    ends = measure(original), measure(model)
    highest = 0.0
    for i in range(1, points + 1):
        share = i / (points + 1)
        for mixed, a, b in zip(between.parameters(), original.parameters(), model.parameters(), strict=True):
            mixed.copy_(torch.lerp(a, b, share))
        highest = max(highest, measure(between) - (1 - share) * ends[0] - share * ends[1])
    return highest


@torch.no_grad()
def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A copy of a model whose matrices are rounded to so many bits, symmetrically and row by row: what rounding moves
    back to where it was before unlearning is known again (Zhang et al. 2024).

    Raises:
        ValueError: for fewer than 2 bits.
    """
    if bits < 2:
        raise ValueError(f"weights need at least 2 bits, got {bits}")
    levels = 2 ** (bits - 1) - 1
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        if parameter.ndim == 2:
            scale = parameter.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(parameter.dtype).tiny) / levels
            parameter.copy_((parameter / scale).round() * scale)
    return rounded
