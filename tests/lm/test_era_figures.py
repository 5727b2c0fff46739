"""The figures of a study of Expand-Route-Ablate, of results that are made up."""

import numpy as np
import pandas as pd
import pytest

from routed_rl.lm.era_study.figures import GROUPS, ORDER, UNLABELLED, draw_panels, draw_relearning, draw_tokens
from tests.figure_checks import check, colours, series

MEASURES = ("unlearning", "robust", "retain", "forget_routed", "forget_rest")
FEW = ("base", "filtering", "era")


def frame(methods=ORDER, seeds=3):
    shares = [(method, share) for method in methods for share in (0.25, 0.5, 1.0) if method not in UNLABELLED]
    shares += [(method, 1.0) for method in methods if method in UNLABELLED]
    rows = [
        {"method": method, "labelled": share, "seed": seed}
        | {name: share + 0.3 * ORDER.index(method) + 0.05 * seed for name in MEASURES}
        for method, share in shares
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def curves(methods=ORDER, seeds=3):
    def curve(method, seed):
        last = 13 if method == "demix" else 21  # an attack may stop early
        return [(step, 1 + ORDER.index(method) / 10 + np.exp(-step) + seed / 20) for step in range(0, last, 4)]

    return {
        (method, 1.0 if method in UNLABELLED else 0.5, seed): {number: [curve(method, seed)] for number in ("4", "16")}
        for method in methods
        for seed in range(seeds)
    }


@pytest.mark.parametrize("seeds", [2, 3])
def test_all_figures_can_be_read(seeds):
    panels, relearning = draw_panels(frame(seeds=seeds)), draw_relearning(curves(seeds=seeds), 0.5)
    check(panels)
    check(relearning)
    check(draw_tokens(frame(seeds=seeds)))
    assert len(panels.axes) == 6 and len(relearning.axes) == 4
    assert colours(panels) == colours(relearning), "a method has one colour"


def test_every_method_is_drawn():
    assert {name for names in GROUPS.values() for name in names} == set(ORDER)


def test_a_panel_that_would_show_nothing_new_is_left_out():
    figure = draw_panels(frame(FEW))
    assert len(figure.axes) == 3
    assert {line.get_label() for line in series(figure.axes[0])} == {"base", "filtering", "ERA, activations"}
    check(figure)


def test_intervals_of_methods_stand_side_by_side():
    first = [line.get_xdata()[0] for line in series(draw_panels(frame()).axes[0]) if line.get_label() != "base"]
    assert len(set(first)) == len(first)
