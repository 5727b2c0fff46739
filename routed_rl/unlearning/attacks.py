"""Relearning attacks over a learning-rate sweep: how much of the forgotten knowledge comes back, and how soon."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from routed_rl.lm.training import Source, Training, train
from routed_rl.options.undo import Relearn
from routed_rl.unlearning.copies import TrainedCopy

Setting = float | str
"""What distinguishes an attempt from the others of an attack, such as its learning rate."""
OnStep = Callable[[int], None]
Look = Callable[[int, nn.Module], None]
"""Gets a number of steps, and the attacked model after them."""
SMALLEST_GAP = 0.02
"""Smallest gap between filtered model and teacher for which robustness is defined, in accuracy or nats."""


class Attack(ABC):
    """Attempts to bring back what a model has forgotten. The best attempt counts.

    An attack of your own is a subclass that can be made without arguments: ``--attack my_module:MyAttack``.

    Attributes:
        attempts: the setting of each attempt.
        steps: of one attempt, at most.
        measured: numbers of steps after which an attempt shows its model.
    """

    attempts: Sequence[Setting]
    steps: int
    measured: Sequence[int]

    @abstractmethod
    def attempt(
        self,
        setting: Setting,
        model: nn.Module,
        source: Source,
        look: Look,
        *,
        seed: int,
        on_step: Callable[[int], None],
    ) -> None:
        """Attack a copy of a model, and call ``look`` after each number of steps in :attr:`measured`.

        The copy has the model's parameters, or is one of PEFT. An attempt may end early, where it diverges.

        Args:
            model: not to be changed.
            source: the attacker's training data: batches of forget documents.
            seed: fixes all that is random.
            on_step: to be called after each step, with its number from 0.
        """


@dataclass(frozen=True)
class Relearning(Attack):
    """:func:`relearn`, an attempt for each learning rate."""

    settings: Relearn = field(default_factory=Relearn)
    """learning rates, steps, and what the attacker has"""
    accumulate: int = 1
    """parts in which a batch is computed, to save memory"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the matrix products; weights are float32"""
    gradient_checkpointing: bool = False
    """whether each block is computed again in the backward pass, to save memory"""
    shard: bool = False
    """with several processes, whether the attacked copy is divided among them"""

    @property
    def attempts(self) -> Sequence[float]:  # type: ignore[override]
        """The learning rates."""
        return self.settings.learning_rates

    @property
    def steps(self) -> int:  # type: ignore[override]
        """Gradient steps."""
        return self.settings.steps

    @property
    def measured(self) -> Sequence[int]:  # type: ignore[override]
        """Numbers of gradient steps."""
        return tuple(sorted(self.settings.measured))

    def attempt(
        self,
        setting: Setting,
        model: nn.Module,
        source: Source,
        look: Look,
        *,
        seed: int,
        on_step: Callable[[int], None],
    ) -> None:
        """Relearn at one learning rate; see :meth:`Attack.attempt`."""
        steps = iter(self.measured)

        def measure(tuned: nn.Module) -> dict[str, float]:
            look(next(steps), tuned)
            return {}

        relearn(
            model,
            source,
            self.steps,
            float(setting),
            self.measured,
            measure,
            rank=self.settings.rank,
            gradient_checkpointing=self.gradient_checkpointing,
            accumulate=self.accumulate,
            shard=self.shard,
            precision=self.precision,
            seed=seed,
            on_step=on_step,
        )


def relearn(
    model: nn.Module,
    source: Source,
    steps: int,
    learning_rate: float,
    measured: Collection[int],
    measure: Callable[[nn.Module], dict[str, float]],
    *,
    rank: int | None = None,
    master_weights: bool = True,
    gradient_checkpointing: bool = False,
    accumulate: int = 1,
    shard: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[dict[str, float]]:
    """Attack a copy of a model by fine-tuning, and return what is measured (UNDO).

    The attacker uses AdamW at a constant learning rate. Weights that are trained are float32. (UNDO's are bfloat16,
    which low learning rates hardly move.)

    Args:
        source: the attacker's training data.
        steps: gradient steps.
        measured: steps after which the copy is measured. 0 is before the first step.
        measure: returns named numbers.
        rank: of low-rank adapters on all linear layers but the last (LoRA, Hu et al. 2021). The attacker then trains
            only these adapters. Experts of a mixture are not linear layers, so they get none. None: all weights.
        accumulate: parts in which a batch is computed, to save memory.
        shard: with several processes, divide the copy among them. All of them then measure it together.
        precision: of the matrix products; weights are float32.

    Returns:
        The measurements, each with its "step". An attack that diverges ends early.

    Raises:
        FloatingPointError: if a measurement before the attack is not a finite number.
    """
    options = {"master_weights": master_weights, "gradient_checkpointing": gradient_checkpointing, "shard": shard}
    copied = TrainedCopy(model, rank, **options)
    tuned = copied.begin(seed)
    history: list[dict[str, float]] = []

    def look(step: int) -> None:
        if step in measured:
            found = measure(tuned)
            if not all(map(math.isfinite, found.values())):
                raise FloatingPointError(f"a measurement at step {step} of the attack is not a finite number")
            history.append({"step": step, **found})

    def after(step: int) -> None:
        on_step(step)  # a step counts even if the attack has diverged in it
        look(step + 1)

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
        train(copied.distributed, source, copied.training(settings), seed=seed, on_step=after)
    return history


@dataclass(frozen=True)
class WorstCase:
    """The worst case within N steps, for each number of steps N.

    It is the highest forget accuracy (or lowest loss) over all learning rates and all measured steps up to N, because
    an attacker may stop early.

    Attributes:
        steps: numbers of steps, N, in order. 0 is before the attack.
        forget: the best forget performance within each of them.
        learning_rate: the learning rate that gives it.
        inside: whether the sweep is wide enough: a learning rate between the lowest and the highest is at least as good
            as these two. If not, the model may look robust only because the sweep is too narrow.
        diverged: the learning rates at which the attack diverged, and so was not measured to its end.
    """

    steps: tuple[int, ...]
    forget: tuple[float, ...]
    learning_rate: tuple[float, ...]
    inside: bool
    diverged: tuple[float, ...] = ()


def worst_case(
    curves: Mapping[float, Sequence[Mapping[str, float]]],
    higher_is_better: bool,
    kept: float | None = None,
    steps: Collection[int] = (),
) -> WorstCase:
    """Return the worst case within each number of steps: the best attack over all learning rates and steps up to it.

    Args:
        curves: for each learning rate, what :func:`relearn` returned, with "forget" and "retain".
        higher_is_better: whether both are accuracies, not losses.
        kept: share of the retain performance that the attacker must keep. 0.9 means at least 0.9 of the accuracy before
            the attack, or at most 1 / 0.9 of the loss before it. None: the attacker may destroy all retain performance.
        steps: further numbers of steps for which the worst case is returned, if all attacks ended earlier.

    Raises:
        ValueError: if nothing was measured.
    """
    if not curves or not all(curves.values()):
        raise ValueError("an attack needs at least one learning rate, and a measurement before its first step")
    sign = 1.0 if higher_is_better else -1.0
    reached = {rate: int(curve[-1]["step"]) for rate, curve in curves.items()}
    last = max(*reached.values(), *steps, 0)
    found: list[tuple[int, float, float]] = []
    for rate in sorted(curves):
        before = curves[rate][0].get("retain", math.nan)
        for entry in curves[rate]:
            if kept is not None and sign * entry["retain"] < sign * before * (kept if higher_is_better else 1 / kept):
                continue
            found.append((int(entry["step"]), rate, entry["forget"]))
    budgets = tuple(sorted({int(entry["step"]) for curve in curves.values() for entry in curve} | {*steps}))
    within = [[entry for entry in found if entry[0] <= budget] for budget in budgets]
    best = [max(entries, key=lambda entry: sign * entry[2]) for entries in within]
    # Before its first step an attack has no learning rate.
    attacked = {rate: [sign * value for step, own, value in found if step and own == rate] for rate in curves}
    of_rates = {rate: max(values, default=-math.inf) for rate, values in attacked.items()}
    ends = [of_rates.pop(rate) for rate in {min(curves), max(curves)}]
    return WorstCase(
        budgets,
        tuple(value for _, _, value in best),
        tuple(rate for _, rate, _ in best),
        max(of_rates.values(), default=-math.inf) >= max(ends),
        tuple(sorted(rate for rate, step in reached.items() if step < last)),
    )


def robustness(forget: float, of_teacher: float, of_oracle: float) -> float:
    """Return ``(P - P_teacher) / (P_filtered - P_teacher)``, where ``P`` is forget performance under attack (UNDO).

    0 is as fragile as the suppressed model (the teacher). 1 is as robust as the oracle (= filtered model), a model
    trained without the forget set. NaN: these two differ by less than 0.02.

    Args:
        forget: ``P`` of the student, the worst case within so many steps: the highest forget accuracy, or lowest forget
            loss, over all learning rates and all measured steps up to this number.
        of_teacher: the same of the student's teacher.
        of_oracle: the same of the oracle (= filtered model).
    """
    gap = of_oracle - of_teacher
    return (forget - of_teacher) / gap if abs(gap) >= SMALLEST_GAP else math.nan


# --- how far a model is from another ---------------------------------------------------------------


@torch.no_grad()
def weight_distance(model: nn.Module, original: nn.Module) -> float:
    """Return ``|theta - theta_original| / |theta_original|``, over all parameters together."""
    pairs = zip(model.parameters(), original.parameters(), strict=True)
    squares = [((a.double() - b.double()).square().sum(), b.double().square().sum()) for a, b in pairs]
    return math.sqrt(sum(float(change) for change, _ in squares) / sum(float(whole) for _, whole in squares))


@torch.no_grad()
def barrier(model: nn.Module, original: nn.Module, measure: Callable[[nn.Module], float], points: int = 5) -> float:
    """Return the loss barrier between two models (linear mode connectivity, Frankle et al. 2020).

    Along the straight line between the two models' weights, the loss is compared with the straight line between their
    losses. The barrier is the largest difference. It is 0 for models in one basin.

    Args:
        measure: returns a model's loss.
        points: number of evenly spaced points between the two models at which the loss is measured.
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
    """Return a copy of a model with its matrices rounded to this many bits, symmetrically and row by row.

    The weights of several experts in one tensor, ``(E, …, …)``, are matrices too. A row is along the last dimension.

    Rounding may move a weight back to its value before unlearning, and so bring knowledge back (Zhang et al. 2024).

    Raises:
        ValueError: for fewer than 2 bits.
    """
    if bits < 2:
        raise ValueError(f"weights need at least 2 bits, got {bits}")
    levels = 2 ** (bits - 1) - 1
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        if parameter.ndim >= 2:
            scale = parameter.abs().amax(dim=-1, keepdim=True) / levels
            scale[scale == 0] = 1.0  # a row of zeros, or of numbers that are too small for the format, becomes zeros
            parameter.copy_((parameter / scale).round() * scale)
    return rounded
