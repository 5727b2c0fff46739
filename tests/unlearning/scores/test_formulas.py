"""The formulas of scores, each against the same formula written out without arrays. Their examples run as doctests."""

import doctest
import inspect
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from routed_rl.unlearning.scores import choices, knowledge, memorisation, probability, rouge, truth_ratio, utility

DRAWN = settings(max_examples=50, deadline=None)
MODULES = (choices, knowledge, memorisation, inspect.getmodule(probability), rouge, truth_ratio, utility)
ROUGE = RougeScorer(["rougeL"])
TOKENS = st.lists(st.booleans(), min_size=1, max_size=8)
LOGS = st.lists(st.floats(-8, 0), min_size=1, max_size=6)
TEXT = st.lists(st.sampled_from(["a", "be", "see", "dot", "Ever", "ever"]), max_size=8).map(" ".join)


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_examples_in_docstrings_hold(module):
    failed, tried = doctest.testmod(module)
    assert not failed and tried


@DRAWN
@given(TOKENS)
def test_extraction_strength_is_what_the_shortest_prefix_leaves_out(likeliest):
    """Of an answer that no prefix short of itself extends, nothing is extracted."""
    shortest = next(k for k in range(len(likeliest) + 1) if all(likeliest[k:]))
    same(memorisation.extraction_strength(np.array(likeliest)), 1 - shortest / len(likeliest))


@DRAWN
@given(TOKENS)
def test_exact_memorisation_is_the_share_of_likeliest_tokens(likeliest):
    same(memorisation.exact_memorisation(np.array(likeliest)), likeliest.count(True) / len(likeliest))


@DRAWN
@given(LOGS)
def test_probability_is_the_root_of_the_product(logs):
    same(probability(np.array(logs)), math.prod(map(math.exp, logs)) ** (1 / len(logs)))


@DRAWN
@given(st.floats(-8, 0), LOGS)
def test_normalised_probability_is_the_share_of_the_right_answer(right, wrong):
    expected = math.exp(right) / (math.exp(right) + sum(map(math.exp, wrong)))
    same(choices.normalised_probability(right, wrong), expected)


def test_normalised_probability_of_answers_that_are_all_unlikely_is_a_number():
    same(choices.normalised_probability(-2000.0, [-2000.0]), 0.5)
    same(choices.normalised_probability(-math.inf, [-2000.0]), 0.0)


@DRAWN
@given(LOGS, LOGS)
def test_truth_ratio_is_the_ratio_of_geometric_means(right, wrong):
    of_right, of_wrong = (math.prod(map(math.exp, logs)) ** (1 / len(logs)) for logs in (right, wrong))
    log_ratio = truth_ratio.log_truth_ratio(right, wrong)
    ratio = of_wrong / of_right
    same(math.exp(log_ratio) / ratio, 1)
    same(truth_ratio.closeness(np.array([log_ratio])), [min(ratio, 1 / ratio)])
    same(truth_ratio.preference(np.array([log_ratio])), [max(0, 1 - ratio)])


@pytest.mark.parametrize("seed", range(3))
def test_forget_quality_is_the_share_of_orders_that_are_as_far_apart(seed):
    """All ways to divide the numbers into two samples, one by one."""
    rng = np.random.default_rng(seed)
    both = rng.normal(size=9)

    def distance(first):
        one, other = both[list(first)], np.delete(both, list(first))
        return max(abs((one <= x).mean() - (other <= x).mean()) for x in both)

    found = distance(range(4))
    orders = [distance(first) for first in combinations(range(9), 4)]
    expected = sum(other >= found - 1e-9 for other in orders) / len(orders)
    same(truth_ratio.same_distribution(both[:4], both[4:]), expected)


@DRAWN
@given(TEXT, TEXT)
def test_rouge_l_is_that_of_the_usual_library(written, true):
    found = ROUGE.score(true, written)["rougeL"]
    same(rouge.rouge_l(written, true), (found.recall, found.fmeasure))


def test_rouge_l_counts_words_of_other_scripts():
    assert rouge.rouge_l("그는 서울 에서", "그는 부산 에서")[0] == pytest.approx(2 / 3)


@DRAWN
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_harmonic_mean_is_one_over_the_mean_of_inverses(values):
    same(utility.harmonic_mean(values), len(values) / sum(1 / value for value in values))


@DRAWN
@given(LOGS)
def test_the_chosen_option_is_the_likeliest_one(logs):
    best = [i for i, log in enumerate(logs) if log == max(logs)]
    same(choices.chosen(logs), (0 in best) / len(best))


@pytest.mark.parametrize(
    "found",
    [
        probability(np.array([np.nan, -1.0])),
        choices.normalised_probability(np.nan, [-1.0]),
        choices.normalised_probability(-1.0, [np.nan]),
        choices.chosen([-1.0, np.nan]),
        truth_ratio.log_truth_ratio([np.nan], [-1.0]),
        truth_ratio.same_distribution(np.array([1.0, 2.0]), np.array([np.nan, 1.0])),
        utility.harmonic_mean([0.5, np.nan]),
    ],
)
def test_what_is_no_number_stays_so(found):
    assert np.isnan(found)
