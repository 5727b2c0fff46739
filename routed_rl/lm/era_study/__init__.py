"""A study of Expand-Route-Ablate: runs, tables and figures."""

from routed_rl.lm.era_study.study import EraStudy

__all__ = ["EraStudy"]
