"""Names of the methods that use partial oversight, as options and tables have them."""

from __future__ import annotations

from typing import Literal

MethodName = Literal[
    "routing",
    "naive",
    "naive-early-stopped",
    "penalty",
    "screening",
    "filtering",
    "reward-model",
    "oracle",
    "oracle-filtered",
    "no-gate",
    "no-routing",
    "no-gate-no-routing",
    "placebo",
    "shuffled",
]
EARLY_STOPPED = "naive-early-stopped"
"""Learns as naive does; labels only choose when it stops."""
