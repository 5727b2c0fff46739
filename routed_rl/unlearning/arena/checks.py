"""What an arena refuses before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from routed_rl.errors import UserError, at_least
from routed_rl.options.arena import ArenaOptions
from routed_rl.plugins import Plugin
from routed_rl.wording import written


def check_set(plugin: Plugin[Any], option: str, name: str, allowed: Sequence[str]) -> None:
    """Raise ValueError for a class that has not set an attribute to one of these values."""
    if (value := getattr(plugin.kind, name, None)) not in allowed:
        raise ValueError(
            f"{option} {plugin.reference} must set {name} to one of {', '.join(map(repr, allowed))}, got {value!r}"
        )


def check_ranges(options: ArenaOptions) -> None:
    """Raise UserError for a number that is out of its range, or options that cancel each other."""
    at_least(1, budget=options.budget, batch_size=options.batch_size, seeds=options.seeds)
    student, routing = options.student, options.routing
    at_least(1, **{"student.steps": student.steps})
    at_least(0, **{"routing.repair_steps": routing.repair_steps, "student.least": student.least})
    at_least(0, first_seed=options.first_seed)
    if options.rank is not None:
        at_least(1, rank=options.rank)
    at_least(1, accumulate=options.accumulate)
    if options.batch_size % options.accumulate:
        raise UserError(
            f"{written('--batch-size', options.batch_size)} cannot be divided into "
            f"{written('--accumulate', options.accumulate)} equal parts: choose a multiple"
        )
    for name, values in (("alphas", options.alphas), ("keep", (options.keep,))):
        if wrong := [value for value in values if not 0 <= value <= 1]:
            raise UserError(f"{written(f'--{name}', wrong[0])} must be between 0 and 1")
    for name in ("methods", "attacks", "before", "then", "alphas", "learning_rates"):
        option = f"--{name.replace('_', '-')}"
        if not (given := getattr(options, name)) and name not in ("alphas", "learning_rates"):
            raise UserError(f"{option} must name one or more")
        if twice := [value for value in dict.fromkeys(given) if given.count(value) > 1]:
            raise UserError(f"{written(option, twice[0])} is there twice")
    rates = {"--student.learning-rate": (student.learning_rate,), "--learning-rates": options.learning_rates}
    rates |= {"--routing.repair-learning-rate": (routing.repair_learning_rate,)}
    for option, values in rates.items():
        if wrong := [rate for rate in values if not 0 < rate < math.inf]:
            raise UserError(f"{written(option, wrong[0])} must be above 0")
    for option, value in (("--beta", options.beta), ("--student.within", student.within or 0)):
        if not 0 <= value < math.inf:
            raise UserError(f"{written(option, value)} must be 0 or more")
    if "undo" in options.then and not options.alphas:
        raise UserError("--then undo needs one or more --alphas")
    if options.trust and options.model is not None and options.retrained is None:
        raise UserError("--trust needs --retrained, a model that surely never learned the forget set")
    if "era" in options.before and options.model is not None:
        given = written("--model", options.model)
        raise UserError(f"--before era routes while a model is trained, and {given} is trained: leave one of them out")
    if options.retrained is not None and options.model is None:
        raise UserError(f"{written('--retrained', options.retrained)} needs --model, the model to unlearn")
