"""The methods that a study can name, as options of its runs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, get_args

from routed_rl.options.oversight import MethodName, Run

STRICT, PREDICTED = "strict", "routing-predicted"
NOISE = re.compile(r"(miss|flip)-([01]|0?\.\d+|1\.0)(-hard)?")
"""Names of methods with label noise: the kind of noise, its rate, and whether noise grows with the episode's length."""


def variant(name: str, base: Run) -> dict[str, Any]:
    """Return the options of runs of a method. ``base`` has the other options.

    Raises:
        ValueError: if the name is unknown.
    """
    if name in get_args(MethodName):
        return {"method": name}
    if name == STRICT:
        return {"method": "routing", "unlabelled": "none"}
    if name == PREDICTED:
        return {"method": "routing", "unlabelled": "predicted", "learner": replace(base.learner, solo=1.0)}
    if found := NOISE.fullmatch(name):
        return {"method": "routing", f"{found[1]}_rate": float(found[2]), "hard_first": found[3] is not None}
    known = ", ".join((*get_args(MethodName), STRICT, PREDICTED))
    raise ValueError(f"unknown method {name!r}; choose from {known}, miss-RATE[-hard] and flip-RATE[-hard]")
