"""Methods that remove a topic from a language model, as configurations of the same steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method: what it does with labels, and how it removes the topic."""

    expands: bool = False
    """adds new units for the topic, and ablates them"""
    weights: str | None = None
    """how new and original units are weighted by label: "era", "experts" (in mode forward), or None, not routed"""
    drops: bool = False
    """leaves labelled documents out of training"""
    misdirects: bool = False
    """uses RMU after training"""


METHODS: Mapping[str, Method] = {
    "base": Method(),
    "filtering": Method(drops=True),
    "control": Method(expands=True),
    "era": Method(expands=True, weights="era"),
    "demix": Method(expands=True, weights="experts"),
    "rmu": Method(misdirects=True),
}
