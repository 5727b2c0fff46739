"""Benchmarks of unlearning, by name."""

from collections.abc import Mapping

from routed_rl.plugins import Registry
from routed_rl.unlearning.benchmarks.benchmark import Benchmark, BenchmarkKind, Example, Recipe
from routed_rl.unlearning.benchmarks.tofu_small import TofuSmall

BENCHMARKS: Mapping[str, type[BenchmarkKind]] = {
    "tofu-small": TofuSmall,
}
"""The benchmarks by name."""
ALL_BENCHMARKS: Registry[BenchmarkKind] = Registry("benchmark", BenchmarkKind, BENCHMARKS, "routed_rl.benchmarks")
"""All benchmarks that can be named: those above, those of installed packages, and the user's own."""

__all__ = ["ALL_BENCHMARKS", "BENCHMARKS", "Benchmark", "BenchmarkKind", "Example", "Recipe"]
