"""Suppression methods: each is a short loss or gradient transform that removes the forget set and keeps the retain set.

To add a method, write a file with a subclass of :class:`Suppressor`, and add a line here.
"""

from collections.abc import Mapping

from routed_rl.lm.suppressors.graddiff import GradDiff
from routed_rl.lm.suppressors.maxent import MaxEnt
from routed_rl.lm.suppressors.npo import Npo
from routed_rl.lm.suppressors.repnoise import RepNoise
from routed_rl.lm.suppressors.rmu import Rmu
from routed_rl.lm.suppressors.sam import Sam
from routed_rl.lm.suppressors.simnpo import SimNpo
from routed_rl.lm.suppressors.suppressor import FORWARD_PASS, Suppressor
from routed_rl.lm.suppressors.undial import Undial

SUPPRESSORS: Mapping[str, type[Suppressor]] = {
    "graddiff": GradDiff,
    "maxent": MaxEnt,
    "rmu": Rmu,
    "npo": Npo,
    "simnpo": SimNpo,
    "undial": Undial,
    "repnoise": RepNoise,
    "sam": Sam,
}
"""The methods by name. Called without arguments, they have the settings of the small protocol."""

__all__ = [
    "FORWARD_PASS",
    "SUPPRESSORS",
    "GradDiff",
    "MaxEnt",
    "Npo",
    "RepNoise",
    "Rmu",
    "Sam",
    "SimNpo",
    "Suppressor",
    "Undial",
]
