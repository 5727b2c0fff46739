"""The oversight study: methods compared over oversight levels and seeds, in tables and figures."""

from routed_rl.rl.oversight_study.report import OversightReport
from routed_rl.rl.oversight_study.study import OversightStudy

__all__ = ["OversightReport", "OversightStudy"]
