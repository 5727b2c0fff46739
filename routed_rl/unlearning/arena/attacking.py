"""One attack on one model: all its attempts, within a budget, and the best of what they bring back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from zlib import crc32

import torch
from torch import nn

from routed_rl.errors import UserError
from routed_rl.unlearning.arena.attacks import ArenaAttack, Setting, Victim
from routed_rl.unlearning.attacks import worst_case
from routed_rl.unlearning.benchmarks.benchmark import Benchmark, Example

Change = Callable[[Example], Example]
Measure = Callable[[nn.Module, Change, Benchmark], Mapping[str, float]]
"""Returns numbers of a model by name, given what the attacker makes of each question, and the benchmark to measure.
The number ``main`` is the benchmark's main score."""
MAIN = "main"


def run_attack(
    attack: ArenaAttack,
    victim: Victim,
    measure: Measure,
    budget: int,
    half: float | None = None,
    measure_worst: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Attack a model by all attempts of an attack, which share a budget, and return what JSON can hold.

    Args:
        attack: the attack, with its settings.
        victim: the model, and what the attacker may use. Its number of steps is replaced by an attempt's share.
        measure: returns numbers of a model by name. It gets the attacked model, what the attacker makes of each
            question, and the benchmark to measure. The number ``main`` is the benchmark's main score.
        budget: gradient steps of all attempts together.
        half: main score at which half of the knowledge is back. None: halfway from the benchmark's chance to 1.
        measure_worst: returns further numbers of the model at the worst look, by name. A copy of that model is kept
            until then. None: there are none.

    Returns:
        What was found, by name.

        - ``looks``: what was measured: ``attempt``, ``step`` and the numbers. A number that is not finite is None.
        - ``worst``: the highest main score of all looks, with its ``attempt`` and ``step``. Of equal looks,
          that with the fewest steps counts. All three are None if nothing finite was measured.
        - ``others``: what ``measure_worst`` returned, without numbers that are not finite.
        - ``half``: the smallest step at which the main score reached ``half``. None: it did not.
        - ``inside``: whether the best learning rate of a sweep is neither its lowest nor its highest, or these are no
          better. None: the attack has no sweep, or nothing was measured.
        - ``diverged``: learning rates of a sweep whose attempts ended before their last step.
        - ``cost``: gradient steps of all attempts together.

    Raises:
        UserError: for an attack that has more attempts than the budget has steps, that the benchmark does not allow, or
            that needs the original model when there is none.
        ValueError: for an attempt that costs more than its share.
    """
    name, attempts = type(attack).__name__, attack.attempts
    if (reason := attack.undefined(victim.benchmark)) is not None:
        raise UserError(f"the attack {name} is not possible: {reason}")
    if attack.needs_original and victim.original is None:
        raise UserError(f"the attack {name} needs the original model, and there is none: leave it out")
    if budget < len(attempts):
        raise UserError(
            f"the attack {name} has {len(attempts)} attempts, and a budget of {budget} steps: give it "
            f"{len(attempts)} or more"
        )
    victim = replace(victim, steps=budget // len(attempts))
    looks: list[dict[str, Any]] = []
    worst = _Worst(keep=measure_worst is not None)
    cost = 0.0
    for setting in attempts:
        look = _Look(setting, victim.benchmark, measure, looks, worst)
        before = checksum(victim.model)
        given = attack.attempt(setting, victim, look)
        if checksum(victim.model) != before:
            raise UserError(f"{name} has changed victim.model in the attempt {setting!r}: let it attack a copy")
        try:
            spent = float(given)
        except (TypeError, ValueError):
            raise UserError(f"attempt() of {name} must return what it has spent, a number, got {given!r}") from None
        if not spent <= victim.steps * (1 + 1e-9):  # sums of thirds are rounded
            raise ValueError(f"{name} spent {spent} steps on the attempt {setting!r}, and had {victim.steps}")
        cost += spent
    wanted = (1 + victim.benchmark.chance) / 2 if half is None else half
    found = [look for look in looks if look[MAIN] is not None]
    best = worst.look or {}
    others = {} if measure_worst is None or worst.model is None else measure_worst(worst.model)
    return {
        "looks": looks,
        "worst": best.get(MAIN),
        "attempt": best.get("attempt"),
        "step": best.get("step"),
        "others": {name: float(value) for name, value in others.items() if math.isfinite(value)},
        "half": min((look["step"] for look in found if look[MAIN] >= wanted), default=None),
        **_of_sweep(attack, found, victim.steps),
        "cost": cost,
    }


def checksum(model: nn.Module) -> int:
    """Return a number that changes if a parameter or buffer of a model does."""
    found = 0
    for tensor in model.state_dict().values():
        found = crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), found)
    return found


class _Worst:
    """The look with the highest main score so far, of equal ones that with the fewest steps, and a copy of its model.

    Args:
        keep: whether the model is copied.
    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self.look: dict[str, Any] | None = None
        self.model: nn.Module | None = None

    def see(self, look: dict[str, Any], model: nn.Module) -> None:
        if look[MAIN] is None or (self.look is not None and self._rank(look) <= self._rank(self.look)):
            return
        self.look = look
        if self._keep:
            self.model = None  # first the old copy goes
            self.model = copy.deepcopy(model)

    @staticmethod
    def _rank(look: Mapping[str, Any]) -> tuple[float, float]:
        return look[MAIN], -look["step"]


class _Look:
    """A :class:`~routed_rl.unlearning.arena.attacks.Look` that keeps what it has seen."""

    def __init__(
        self,
        setting: Setting,
        benchmark: Benchmark,
        measure: Measure,
        looks: list[dict[str, Any]],
        worst: _Worst,
    ) -> None:
        self._setting, self._benchmark, self._measure = setting, benchmark, measure
        self._looks, self._worst = looks, worst

    def __call__(
        self,
        step: float,
        model: nn.Module,
        change: Change = lambda example: example,
        benchmark: Benchmark | None = None,
    ) -> float:
        numbers = self._measure(model, change, self._benchmark if benchmark is None else benchmark)
        kept = {name: float(value) if math.isfinite(value) else None for name, value in numbers.items()}
        self._looks.append({"attempt": self._setting, "step": step, **kept})
        self._worst.see(self._looks[-1], model)
        return float(numbers[MAIN])


def _of_sweep(attack: ArenaAttack, found: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Return whether a sweep is wide enough, and which of its learning rates diverged."""
    if not attack.sweep or not found:
        return {"inside": None, "diverged": []}
    start = {"step": 0, "forget": -math.inf}  # a learning rate that diverged may have no look
    curves = {
        float(rate): [start] + [{"step": of["step"], "forget": of[MAIN]} for of in found if of["attempt"] == rate]
        for rate in attack.attempts
    }
    case = worst_case(curves, higher_is_better=True, steps=(steps,))
    return {"inside": case.inside, "diverged": list(case.diverged)}
