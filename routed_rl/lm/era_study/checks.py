"""Checks of the options that era and unlearn share."""

from __future__ import annotations

import math

from routed_rl.errors import at_least
from routed_rl.lm.inputs import check_corpus_options
from routed_rl.options.era import TextOptions
from routed_rl.wording import shown, written


def check_options(options: TextOptions, processes: int = 1) -> None:
    """Raise UserError or ValueError for an option with a value that cannot be used, before anything is run."""
    check_corpus_options(options)
    repair, attack, rmu = options.repair, options.attack, options.rmu
    steps = {"steps": options.steps, "warmup": options.warmup}
    steps |= {
        "repair.chosen": repair.chosen,
        "repair.chosen-steps": repair.chosen_steps,
        "repair.steps": repair.steps,
        "attack.steps": attack.steps,
        "rmu.steps": rmu.steps,
    }
    at_least(0, **steps)
    counts = {name: getattr(options, name) for name in ("adapters", "units", "batch_size")}
    counts["repair.documents"] = repair.documents
    counts |= {"repair.selection": repair.selection, "rmu.batch_size": rmu.batch_size}
    counts |= {"attack.repeats": attack.repeats, "attack.every": attack.every}
    at_least(1, **{name: count for name, count in counts.items() if count is not None})
    if not attack.documents or min(attack.documents) < 1 or len(set(attack.documents)) < len(attack.documents):
        given = shown(attack.documents)
        raise ValueError(f"--attack.documents must be one or more different numbers from 1 on, got {given}")
    rates = {"learning-rate": options.learning_rate, "repair.learning-rate": repair.learning_rate}
    rates |= {"attack.learning-rate": attack.learning_rate, "rmu.learning-rate": rmu.learning_rate}
    for name, rate in rates.items():
        if not 0 <= rate < math.inf:
            raise ValueError(f"--{name} must be a finite number of at least 0, got {rate}")
    if options.mode == "forward" and options.alpha:
        raise ValueError(
            f"{written('--mode', 'forward')} switches the original units off for routed tokens: leave out "
            f"{written('--alpha', options.alpha)}"
        )
    if options.batch_size % (processes * options.accumulate):
        raise ValueError(
            f"{written('--batch-size', options.batch_size)} cannot be divided evenly: choose a multiple of "
            f"{processes} processes times {written('--accumulate', options.accumulate)}"
        )
