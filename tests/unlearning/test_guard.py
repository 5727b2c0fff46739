"""The check of suppression: what passes it, and its error messages."""

import math

import pytest

from routed_rl.unlearning import SuppressionError, check_suppression

LOSS = math.log(18)


@pytest.mark.parametrize(
    ("forget", "retain", "ignorance"),
    [
        ((1.0, 0.0), (1.0, 1.0), 0.0),
        ((1.0, 0.89), (0.9, 0.46), 0.0),
        ((0.9, 0.3), (0.9, 1.0), 0.25),  # below chance, and better than before
        ((0.7, 3.2), (0.7, 0.8), LOSS),
        ((0.7, 9.0), (0.7, 1.7), LOSS),
    ],
)
def test_what_is_suppressed_passes(forget, retain, ignorance):
    assert check_suppression(forget, retain, ignorance) is None, "it raises where it does not pass"


@pytest.mark.parametrize(
    ("forget", "retain", "ignorance", "message"),
    [
        ((1.0, 0.95), (1.0, 1.0), 0.0, "did nothing: the forget performance went from 1 to 0.95, and a model that"),
        ((0.7, 0.7), (0.7, 0.7), LOSS, "did nothing.* from 0.7 to 0.7, and a model that knows nothing has 2.89"),
        ((1.0, math.nan), (1.0, 1.0), 0.0, "did nothing: the forget performance went from 1 to nan"),
        ((1.0, 0.0), (1.0, 0.4), 0.0, "collapsed the model: .* from 1 to 0.4, and a model that knows nothing has 0;"),
        ((1.0, 1.0), (1.0, 0.4), 0.0, "collapsed the model"),
        ((0.7, 3.2), (0.7, 2.5), LOSS, "collapsed the model: its retain performance went from 0.7 to 2.5, and a model"),
        ((0.7, 3.2), (0.7, math.nan), LOSS, "collapsed the model: its retain performance went from 0.7 to nan"),
        ((0.7, 3.2), (0.7, math.inf), LOSS, "collapsed the model: its retain performance went from 0.7 to inf"),
    ],
)
def test_what_is_not_is_said(forget, retain, ignorance, message):
    with pytest.raises(SuppressionError, match=message):
        assert check_suppression(forget, retain, ignorance) is None, "it raises where it does not pass"


def test_limits_are_options():
    with pytest.raises(SuppressionError, match="did nothing"):
        check_suppression((1.0, 0.5), (1.0, 1.0), 0.0, forget_left=0.4)
    with pytest.raises(SuppressionError, match="collapsed"):
        check_suppression((1.0, 0.0), (1.0, 0.9), 0.0, retain_left=0.95)


def test_a_model_that_knew_nothing_cannot_forget():
    with pytest.raises(ValueError, match="the forget performance before suppression is 0, as if the model knew"):
        check_suppression((0.0, 0.0), (1.0, 1.0), 0.0)
