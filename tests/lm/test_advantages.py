"""Advantages among the completions that teach, against a loop over groups."""

import random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.lm.advantages import advantages_among


def naive_advantages(rewards, taught, size, scale):
    counted = [i for i in range(len(rewards)) if taught[i] and not np.isnan(rewards[i])]
    found = [0.0] * len(rewards)
    for begin in range(0, len(rewards), size):
        own = [i for i in counted if begin <= i < begin + size]
        values = [rewards[i] for i in own]
        if len(set(values)) < 2:
            continue
        of = {"group": values, "batch": [rewards[i] for i in counted]}.get(scale)
        for i in own:
            found[i] = (rewards[i] - np.mean(values)) / (np.std(of, ddof=1) + 1e-4 if of else 1.0)
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["group", "batch", "none"]))
def test_advantages_are_among_the_completions_that_teach(seed, scale):
    rng = random.Random(seed)
    rewards = [rng.choice([0.0, 0.1, 1.0, float("nan")]) for _ in range(12)]
    taught = [rng.random() < 0.6 for _ in rewards]
    found = advantages_among(torch.tensor(rewards, dtype=torch.float64), torch.tensor(taught), 4, scale)
    np.testing.assert_allclose(found, naive_advantages(rewards, taught, 4, scale), rtol=1e-9, atol=1e-12)
