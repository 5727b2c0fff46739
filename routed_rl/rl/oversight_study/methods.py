"""The methods that a study can name, as options of its runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from routed_rl.options.oversight import MethodName, Run
from routed_rl.own_modules import load
from routed_rl.rl.overseer import Method
from routed_rl.wording import did_you_mean

STRICT, PREDICTED = "strict", "routing-predicted"
NOISE = re.compile(r"(miss|flip)-([01]|0?\.\d+|1\.0)(-hard)?")
"""Names of methods with label noise: the kind of noise, its rate, and whether noise grows with the episode's length."""

SAME_LEARNER = {
    "naive-early-stopped": "naive",
    "oracle-filtered": "oracle",
    "placebo": "routing",
    "shuffled": "routing",
}
"""Methods that use the learner of another method. Only their data, labels, steps or final policy differ."""


def variant(name: str, base: Run) -> dict[str, Any]:
    """Return the options of runs of a method. ``base`` has the other options.

    Raises:
        ValueError: if the name is unknown, or names no :class:`Method` of the user's own.
    """
    if name == STRICT:
        return {"method": "routing", "unlabelled": "none"}
    if name == PREDICTED:
        return {"method": "routing", "unlabelled": "predicted", "learner": replace(base.learner, solo=1.0)}
    if found := NOISE.fullmatch(name):
        return {"method": "routing", f"{found[1]}_rate": float(found[2]), "hard_first": found[3] is not None}
    learner_method(name, (STRICT, PREDICTED, "miss-RATE[-hard]", "flip-RATE[-hard]"))
    return {"method": name}


def learner_method(name: str, others: Sequence[str] = ()) -> str | Method:
    """Return the method of the learner of a run, as :class:`Overseer` takes it.

    Args:
        name: the name of the run's method.
        others: more names, for the error.

    Raises:
        ValueError: as :func:`variant`.
    """
    if is_own(name):
        return own_method(name)
    if name in (STRICT, PREDICTED):
        options = "--unlabelled none" if name == STRICT else "--unlabelled predicted --learner.solo 1"
        raise ValueError(f"method {name!r} is --method routing {options}")
    if name not in get_args(MethodName):
        known = (*get_args(MethodName), *others)
        raise ValueError(
            f"unknown method {name!r}; choose from {', '.join(known)}, or MODULE:NAME of your own"
            f"{did_you_mean(name, known)}"
        )
    return SAME_LEARNER.get(name, name)


def is_own(name: str) -> bool:
    """Whether a name has the form ``MODULE:NAME``, which stands for a :class:`Method` of the user's own."""
    return ":" in name


def own_method(name: str) -> Method:
    """Import a method of the user's own.

    Raises:
        ValueError: if its module cannot be imported, or has no such :class:`Method`.
    """
    found = load(name)
    if not isinstance(found, Method):
        raise ValueError(
            f"{name!r} must be a Method of routed_rl.rl, as in Method('value', modular=True), got {found!r}"
        )
    return found


def title(name: str) -> str:
    """Return the name of a method in tables, figures and directories: of ``MODULE:NAME``, only ``NAME``."""
    return name.rpartition(":")[2]
