"""Membership inference: the numbers of attacks, the area under the curve, and privacy leakage."""

import doctest
import math
import zlib
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from routed_rl.unlearning.benchmarks import Benchmark, Example
from routed_rl.unlearning.scores import SCORES, membership
from routed_rl.unlearning.scores.membership import area_under_curve, leakage, lowest_mean, standardised, zlib_ratio

DRAWN = settings(max_examples=50, deadline=None)
NUMBERS = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=7)
LOGS = st.lists(st.floats(-8, 0), min_size=1, max_size=7)


def test_the_examples_in_docstrings_hold():
    failed, tried = doctest.testmod(membership)
    assert not failed and tried


@DRAWN
@given(NUMBERS, NUMBERS)
def test_the_area_is_the_share_of_pairs_in_which_the_member_is_larger(members, others):
    pairs = [(one > other) + (one == other) / 2 for one in members for other in others]
    found = area_under_curve(np.array(members), np.array(others))
    assert found == pytest.approx(fmean(pairs), abs=1e-9)
    labels = [1] * len(members) + [0] * len(others)
    assert found == pytest.approx(roc_auc_score(labels, members + others), abs=1e-9)


@DRAWN
@given(LOGS, st.sampled_from([0.1, 0.2, 0.4, 1.0]))
def test_min_k_is_the_mean_of_the_lowest(logs, share):
    count = max(1, int(len(logs) * share))
    assert lowest_mean(np.array(logs), share) == pytest.approx(fmean(sorted(logs)[:count]), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_standardised_log_probabilities_are_those_of_a_written_out_distribution(seed):
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.ones(5))
    mean = sum(p * math.log(p) for p in chances)
    deviation = math.sqrt(sum(p * (math.log(p) - mean) ** 2 for p in chances))
    found = standardised(np.log(chances), np.full(5, mean), np.full(5, deviation))
    for p, z in zip(chances, found, strict=True):
        assert z == pytest.approx((math.log(p) - mean) / deviation, abs=1e-6)


def test_a_distribution_without_spread_is_not_divided_by_zero():
    assert standardised(np.array([-1.0]), np.array([-1.0]), np.array([0.0])).tolist() == [0.0]


@DRAWN
@given(LOGS, st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_the_zlib_ratio_divides_by_compressed_bytes(logs, text):
    expected = fmean(logs) / len(zlib.compress(bytes(text, "utf-8")))
    assert zlib_ratio(np.array(logs), text) == pytest.approx(expected, abs=1e-9)


@DRAWN
@given(st.floats(0, 1), st.floats(0.01, 0.99))
def test_leakage_is_that_of_muse_whose_area_is_of_losses(area, retrained):
    of_losses, reference = 1 - area, 1 - retrained
    assert leakage(area, retrained) == pytest.approx((of_losses - reference) / reference, abs=1e-6)


def test_leakage_against_a_model_that_tells_all_texts_apart_is_no_number():
    assert np.isnan(leakage(1.0, 1.0))


def test_what_is_no_number_stays_so():
    assert np.isnan(area_under_curve(np.array([np.nan]), np.array([1.0])))
    assert np.isnan(area_under_curve(np.array([1.0, 2.0]), np.array([1.0, np.nan])))


@pytest.mark.parametrize(
    ("sets", "count"),
    [
        ({"holdout": 3}, 3),
        ({"forget_texts": 4, "holdout_texts": 5, "holdout": 3}, 5),
        ({"forget_texts": 4, "holdout": 3}, 3),
        ({"holdout_texts": 5}, None),
        ({}, None),
    ],
)
def test_forget_and_holdout_examples_are_of_the_same_kind(sets, count):
    """Texts where both sets have them, otherwise questions, and never questions against texts."""
    made = {name: tuple(Example(f"{name} {i}", "yes") for i in range(size)) for name, size in sets.items()}
    own = {name: (Example(name, "yes"),) for name in ("forget", "retain")}
    benchmark = Benchmark([{"text": "a"}], [{"text": "b"}], {**own, **made})
    score = SCORES["membership-loss"]()
    assert (score.undefined(benchmark) is None) == (count is not None)
    if count is None:
        assert score.undefined(benchmark) == "the benchmark has no holdout set of the same kind as its forget set"
    else:
        assert len(score.sets(benchmark)[1]) == count
