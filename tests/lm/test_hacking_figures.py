"""The figures of a hacking study, of results that are made up."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from routed_rl.lm.hacking.figures import CURVES, ORDER, draw_hacking, draw_relearning, draw_training
from tests.figure_checks import check, labels

ENDS = dict(zip(CURVES, (0.97, 0.003, 0.95, 0.021, 0.001, 0.024, 0.014), strict=True))
WORLDS = ("loophole", "watched")


def curves(seeds, methods):
    def points(method, seed):
        for step in range(0, 201, 25):
            hack = 0.06 + (ENDS[method] - 0.06) * step / 200 + 0.001 * seed
            yield {"step": step, "hack": hack, "on.hack": hack, "on.solved": 0.6 * step / 200 + 0.01 * seed}

    return {
        (world, method, 0.1, seed): list(points(method, seed))
        for world in WORLDS
        for method in methods
        for seed in range(seeds)
    }


@pytest.mark.parametrize("seeds", [2, 3])
def test_all_figures_can_be_read(seeds):
    rows = [
        {"world": world, "method": method, "oversight": share, "seed": seed, "solved": 0.5, "hack": 0.1 + seed / 50}
        for world in WORLDS
        for method in ORDER
        for share in (0.1, 1.0)
        for seed in range(seeds)
    ]
    bars = draw_hacking(pd.DataFrame(rows).assign(base_solved=0.06, base_hack=0.05))
    for figure in (bars, draw_training(curves(seeds, CURVES)), draw_relearning(curves(seeds, CURVES[1:]))):
        check(figure, least=-1)  # ways to punish have one colour, and differ by their dashes


def test_shares_of_hacks_that_differ_by_one_percent_can_be_told_apart():
    solved, hacked = draw_training(curves(3, CURVES)).axes[:2]
    assert solved.get_yscale() == "linear" and "logarithmic" in hacked.get_ylabel()
    assert set(labels(hacked)) == set(CURVES)
    place = (hacked.transData - hacked.transAxes).transform
    ends = sorted(place((200, end))[1] for end in ENDS.values() if end < 0.05)
    assert np.all((np.array(ends) > 0) & (np.array(ends) < 0.5)) and ends[-1] - ends[0] > 0.2
    bars = [ends for lines in hacked.findobj(LineCollection) for ends in lines.get_segments()]
    assert bars, "with intervals"
