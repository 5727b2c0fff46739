"""Whether a score can be trusted, from its values for models whose truth is known."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.unlearning.scores import SCORES, meta
from routed_rl.unlearning.scores.meta import faithfulness, following, rising, stability, trust

DRAWN = settings(max_examples=50, deadline=None)
VALUE = st.floats(0, 1)


def test_the_examples_in_docstrings_hold():
    failed, tried = doctest.testmod(meta)
    assert not failed and tried


@DRAWN
@given(st.lists(VALUE, min_size=1, max_size=5), st.lists(VALUE, min_size=1, max_size=5))
def test_faithfulness_counts_pairs(knowing, unknowing):
    pairs = [1.0 if one > other else 0.5 if one == other else 0.0 for one in knowing for other in unknowing]
    assert faithfulness(knowing, unknowing) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


@DRAWN
@given(VALUE, VALUE)
def test_stability_is_the_ratio_of_the_smaller_to_the_mean(before, after):
    """``1 - |a - b| / (a + b)`` is ``2 min(a, b) / (a + b)``, and the order does not matter."""
    expected = 1.0 if before + after == 0 else 2 * min(before, after) / (before + after)
    assert stability(before, after) == pytest.approx(expected, abs=1e-6) == stability(after, before)


@DRAWN
@given(VALUE, VALUE, VALUE, VALUE)
def test_following_is_1_for_equal_moves_and_0_for_opposite_ones(a, b, c, d):
    up, other = b - a, d - c
    found = following((a, b), (c, d))
    expected = 1.0 if up == other == 0 else 1 - abs(up - other) / (abs(up) + abs(other))
    assert found == pytest.approx(expected, abs=1e-6) and -1e-9 <= found <= 1
    if up * other < 0:
        assert found == pytest.approx(0, abs=1e-9)


def test_a_score_that_sees_what_is_hidden_is_trusted_more():
    """One score of an unlearned model jumps by relearning, since it had missed what was left; the other does not."""
    values = {"knowing": [0.9, 0.8], "unknowing": [0.1, 0.2], "changed": [(0.2, 0.2)]}
    deep, shallow = (trust(**values, relearned=[(pair, (0.1, 0.3))]) for pair in ((0.5, 0.7), (0.1, 0.9)))
    assert deep.faithfulness == shallow.faithfulness == deep.stability == shallow.stability == 1
    assert deep.following == pytest.approx(1) and shallow.following == pytest.approx(0.4)
    assert shallow.robustness == pytest.approx(2 / (1 + 1 / 0.4)) and deep.robustness == pytest.approx(1)


def test_what_was_not_measured_is_no_number():
    found = trust([1.0], [0.0])
    assert found.faithfulness == 1 and all(map(math.isnan, (found.stability, found.following, found.robustness)))
    assert np.isnan(faithfulness([np.nan], [0.0]))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("knowledge", 0.7, 0.7),
        ("truth-ratio", 0.7, 0.3),
        ("log-forget-quality", -2.0, 2.0),
        ("privacy-leakage", -0.5, 0.5),
        ("unlearning-depth", 1.0, 0.0),
    ],
)
def test_scores_are_turned_so_that_knowledge_raises_them(name, value, expected):
    assert rising(SCORES[name](), value) == pytest.approx(expected)
