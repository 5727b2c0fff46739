"""Two halves of a benchmark's forget examples: one that an attacker has, and one that is new to the attacker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routed_rl.runs import derive_seed
from routed_rl.unlearning.benchmarks.benchmark import FORGET, Benchmark, Example


def group_of(example: Example) -> str:
    """Return the name of an example's group: its own text for an example without one."""
    return example.group or f"{example.prompt} {example.answer}"


def halves(benchmark: Benchmark, seed: int) -> tuple[list[Example], list[Example]]:
    """Return two halves of the forget examples. Examples of one group are in the same half.

    The seed draws the order of the groups. The first half is filled group by group, until it has half of the examples
    or one group is left.
    """
    examples = benchmark.examples(FORGET)
    names = list(dict.fromkeys(map(group_of, examples)))
    order = np.random.default_rng(derive_seed(seed, "halves")).permutation(len(names))
    first: set[str] = set()
    for i in order[:-1]:
        if 2 * sum(group_of(example) in first for example in examples) >= len(examples):
            break
        first.add(names[i])
    return tuple([e for e in examples if (group_of(e) in first) == wanted] for wanted in (True, False))  # type: ignore[return-value]


def undivided(benchmark: Benchmark) -> str | None:
    """Return why the forget examples have no two halves. None: they have."""
    examples: Sequence[Example] = benchmark.examples(FORGET)
    count = len(set(map(group_of, examples)))
    return None if count > 1 else f"the benchmark's forget examples are of {count} group, so none can be held out"
