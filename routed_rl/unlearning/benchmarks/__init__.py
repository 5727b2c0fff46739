"""Benchmarks of unlearning, by name."""

from collections.abc import Mapping

from routed_rl.plugins import Registry
from routed_rl.unlearning.benchmarks.benchmark import Benchmark, BenchmarkKind, Example, Recipe
from routed_rl.unlearning.benchmarks.choice_small import ChoiceSmall
from routed_rl.unlearning.benchmarks.custom import Custom
from routed_rl.unlearning.benchmarks.muse import Muse
from routed_rl.unlearning.benchmarks.muse_small import MuseSmall
from routed_rl.unlearning.benchmarks.tofu import Tofu
from routed_rl.unlearning.benchmarks.tofu_small import TofuSmall
from routed_rl.unlearning.benchmarks.wmdp import Wmdp

BENCHMARKS: Mapping[str, type[BenchmarkKind]] = {
    "tofu-small": TofuSmall,
    "muse-small": MuseSmall,
    "choice-small": ChoiceSmall,
    "tofu": Tofu,
    "muse": Muse,
    "wmdp": Wmdp,
    "custom": Custom,
}
"""The benchmarks by name."""
ALL_BENCHMARKS: Registry[BenchmarkKind] = Registry("benchmark", BenchmarkKind, BENCHMARKS, "routed_rl.benchmarks")
"""All benchmarks that can be named: those above, those of installed packages, and the user's own."""

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkKind",
    "ChoiceSmall",
    "Custom",
    "Example",
    "Muse",
    "MuseSmall",
    "Recipe",
    "Tofu",
    "TofuSmall",
    "Wmdp",
]
