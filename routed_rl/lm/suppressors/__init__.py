"""Suppression methods: each is a short loss or gradient transform that removes the forget set and keeps the retain set.

A method of your own is a subclass of :class:`Suppressor` in any module. A method of this package also has a line here.
"""

from collections.abc import Mapping

from routed_rl.lm.passes import FORWARD_PASS
from routed_rl.lm.suppressors.alt_po import AltPo
from routed_rl.lm.suppressors.ceu import Ceu
from routed_rl.lm.suppressors.circuit_breaker import CircuitBreaker
from routed_rl.lm.suppressors.grad_ascent import GradAscent
from routed_rl.lm.suppressors.graddiff import GradDiff
from routed_rl.lm.suppressors.idk_dpo import IdkDpo
from routed_rl.lm.suppressors.idk_nll import IdkNll
from routed_rl.lm.suppressors.lat import Lat
from routed_rl.lm.suppressors.maxent import MaxEnt
from routed_rl.lm.suppressors.npo import Npo
from routed_rl.lm.suppressors.pdu import Pdu
from routed_rl.lm.suppressors.repnoise import RepNoise
from routed_rl.lm.suppressors.repselect import RepSelect
from routed_rl.lm.suppressors.rmu import Rmu
from routed_rl.lm.suppressors.sam import Sam
from routed_rl.lm.suppressors.satimp import SatImp
from routed_rl.lm.suppressors.simnpo import SimNpo
from routed_rl.lm.suppressors.suppressor import Suppressor
from routed_rl.lm.suppressors.undial import Undial
from routed_rl.lm.suppressors.wga import Wga
from routed_rl.plugins import Registry

SUPPRESSORS: Mapping[str, type[Suppressor]] = {
    "graddiff": GradDiff,
    "maxent": MaxEnt,
    "rmu": Rmu,
    "npo": Npo,
    "simnpo": SimNpo,
    "undial": Undial,
    "repnoise": RepNoise,
    "sam": Sam,
    "grad-ascent": GradAscent,
    "wga": Wga,
    "satimp": SatImp,
    "ceu": Ceu,
    "pdu": Pdu,
    "idk-nll": IdkNll,
    "idk-dpo": IdkDpo,
    "alt-po": AltPo,
    "repselect": RepSelect,
    "circuit-breaker": CircuitBreaker,
    "lat": Lat,
}
"""The methods by name. Called without arguments, they have the settings of the small protocol."""
METHODS: Registry[Suppressor] = Registry("suppression method", Suppressor, SUPPRESSORS, "routed_rl.suppressors")
"""All methods that can be named: those above, those of installed packages, and the user's own."""

__all__ = [
    "FORWARD_PASS",
    "METHODS",
    "SUPPRESSORS",
    "AltPo",
    "Ceu",
    "CircuitBreaker",
    "GradAscent",
    "GradDiff",
    "IdkDpo",
    "IdkNll",
    "Lat",
    "MaxEnt",
    "Npo",
    "Pdu",
    "RepNoise",
    "RepSelect",
    "Rmu",
    "Sam",
    "SatImp",
    "SimNpo",
    "Suppressor",
    "Undial",
    "Wga",
]
