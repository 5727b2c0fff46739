"""Ways to take a topic out of a language model, as configurations of the same steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What a method does with labels; each is a configuration of the same steps."""

    expands: bool = False
    """has units of its own for the topic, which are cut out"""
    weights: str | None = None
    """how units are weighted by label: "era", or "experts" (in mode forward)"""
    drops: bool = False
    """leaves labelled documents out"""
    misdirects: bool = False
    """RMU, after training"""


METHODS: Mapping[str, Method] = {
    "base": Method(),
    "filtering": Method(drops=True),
    "control": Method(expands=True),
    "era": Method(expands=True, weights="era"),
    "demix": Method(expands=True, weights="experts"),
    "rmu": Method(misdirects=True),
}
