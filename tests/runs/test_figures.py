"""How figures are drawn, whatever they show."""

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import LineCollection

from routed_rl.runs import figures
from routed_rl.runs.figures import draw_means, in_panels, over_seeds, save, subplots
from routed_rl.runs.style import label_ends, spread, styled
from tests.figure_checks import labels, lightness


def test_labels_are_moved_apart_as_little_as_possible():
    assert spread([0.2, 0.8], [0.1, 0.1]).tolist() == [0.2, 0.8], "nothing touches"
    assert spread([0.5, 0.5, 0.5], [0.1, 0.1, 0.1]) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.52, 0.5], [0.1, 0.3]) == pytest.approx([0.61, 0.41]), "in the order of their ends"
    assert spread([0, 0, 1, 1], [0.1] * 4) == pytest.approx([0.05, 0.15, 0.85, 0.95]), "inside the panel"


def test_series_are_split_into_panels_of_nearly_equal_length():
    assert [len(part) for part in in_panels(range(7))] == [7]
    assert [len(part) for part in in_panels(range(8))] == [4, 4]
    assert [len(part) for part in in_panels(range(11), 5)] == [4, 4, 3]
    assert in_panels([]) == []


def test_labels_stand_beside_the_ends_of_their_lines():
    with styled():
        figure, axes = subplots(height=3)
        for height in (0.0, 0.01, 0.02, 1.0):
            axes.plot([0, 1], [0.5, height], label=f"ends at {height:g}")
        axes.axhline(0.6, label="across the panel")
        label_ends(figure)
    found = {text: label.xy[1] for text, label in labels(axes).items()}
    to_axes = axes.transData - axes.transAxes
    assert found["ends at 1"] == pytest.approx(to_axes.transform((1, 1))[1])
    assert found["across the panel"] == pytest.approx(to_axes.transform((1, 0.6))[1])
    heights = [label.get_position()[1] for label in labels(axes).values()]
    assert heights[:3] == sorted(heights[:3]), "in the order of the lines"
    assert heights[3] == pytest.approx(found["ends at 1"]), "not moved"


def test_intervals_need_three_seeds_and_do_not_widen_the_panel():
    def drawn(samples):
        with styled():
            _, axes = subplots(height=3)
            draw_means(axes, [0.0], [np.array(samples)], color="black", label="a")
        bars = [ends for lines in axes.findobj(LineCollection) for ends in lines.get_segments()]
        return axes, bars

    axes, ((low, high),) = drawn([0.0, 1.0, 2.0])
    assert (low[1], high[1]) == pytest.approx((1 - 4.30 / 3**0.5, 1 + 4.30 / 3**0.5)), "Student's t of two degrees"
    assert low[1] < axes.get_ylim()[0] < 0 and 2 < axes.get_ylim()[1] < high[1]
    axes, bars = drawn([0.0, 1.0])
    assert bars == [] and axes.get_lines()[1].get_ydata().tolist() == [0, 1], "two seeds are dots"
    axes, bars = drawn([1.0])
    assert bars == [] and len(axes.get_lines()) == 1


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([1, 1], "one seed"),
        ([2], "mean of 2 seeds, dots: both seeds"),
        ([3, 3], "mean of 3 seeds, 95 % confidence intervals"),
        ([2, 5], "mean of 2 to 5 seeds, 95 % confidence intervals; dots: both seeds"),
    ],
)
def test_a_figure_says_how_many_seeds_it_shows(numbers, words):
    assert over_seeds(numbers) == words


def test_the_style_neither_changes_the_users_nor_depends_on_it(tmp_path):
    def drawn(path):
        with styled():
            figure, axes = subplots(height=2)
            axes.plot([0, 1], [0, 1], label="a line")
            label_ends(figure)
        save(figure, path)
        return path.read_bytes()

    usual = drawn(tmp_path / "usual.png")
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 20, "savefig.dpi": 50}):
        before = dict(mpl.rcParams)
        assert drawn(tmp_path / "other.png") == usual
        assert dict(mpl.rcParams) == before


def test_colours_can_be_told_apart_in_grey():
    palette = [lightness(colour) for colour in figures.PALETTE.values()]
    assert palette[:9] == sorted(palette[:9]) and max(palette) < 75, "from dark to light, and dark enough on white"
    levels = [lightness(figures.ordered_colour(level)[:3]) for level in np.linspace(0.1, 1, 10)]
    assert all(5 < light - dark < 7 for light, dark in itertools.pairwise(levels))
    with styled():
        cycle = [f"#{colour.lstrip('#')}" for colour in mpl.rcParams["axes.prop_cycle"].by_key()["color"]]
    assert set(cycle) <= set(figures.PALETTE.values())
