"""Gradient routing: a data point's label picks gradient masks, and they decide which parts of a network learn."""

from routed_rl.routing.exclusion import excluded
from routed_rl.routing.gradient import route_gradient
from routed_rl.routing.labels import LabelNoise, check_probability
from routed_rl.routing.leakage import LeakageReport, leakage_report
from routed_rl.routing.mixing import mixed_sites
from routed_rl.routing.router import GradientRouter
from routed_rl.routing.site import Site
from routed_rl.routing.table import UNLABELLED, RouteTable
from routed_rl.routing.units import Hidden, ablate, add_units, remove_units

__all__ = [
    "UNLABELLED",
    "GradientRouter",
    "Hidden",
    "LabelNoise",
    "LeakageReport",
    "RouteTable",
    "Site",
    "ablate",
    "add_units",
    "check_probability",
    "excluded",
    "leakage_report",
    "mixed_sites",
    "remove_units",
    "route_gradient",
]
