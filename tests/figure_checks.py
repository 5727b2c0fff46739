"""What every figure must keep: it can be read 800 pixels wide, in colour and in grey."""

import itertools
from unittest.mock import patch

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation, Text

from routed_rl.runs.figures import MOST, WIDTH
from routed_rl.runs.style import SMALL


def lightness(colour):
    """CIE L* of a colour: 0 for black, 100 for white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 116 * float(np.dot(linear, (0.2126, 0.7152, 0.0722))) ** (1 / 3) - 16


def series(axes):
    """The labelled lines of a panel but for exact reference lines, highest end first."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    shown = [line for line in lines if not str(line.get_label()).endswith("(exact)") and len(line.get_xdata())]
    return sorted(shown, key=lambda line: -line.get_ydata()[-1])


def labels(axes):
    """The labels at the right ends of the lines of a panel, by text on one line."""
    return {
        " ".join(text.get_text().split()): text
        for text in axes.texts
        if isinstance(text, Annotation) and text.xycoords == "axes fraction" and text.get_text() != "better"
    }


def texts(figure):
    """Draw a figure, and return all texts that this draws, with their boxes: labels, titles, ticks, legends."""
    drawn, draw = [], Text.draw

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        return draw(text, renderer)

    with patch.object(Text, "draw", record):
        figure.draw_without_rendering()
    return [(text, Text.get_window_extent(text)) for text in drawn]


def check(figure, least=4.5, far=0.25):
    """Check a figure.

    Args:
        least: smallest difference in L* of two series that end one above the other.
        far: longest way from the end of a line to its label, as a share of the height of the panel.
    """
    upright = [(text.get_text(), box) for text, box in texts(figure) if text.get_rotation() % 90 == 0]
    overlapping = [
        (one, other)
        for (one, its), (other, box) in itertools.combinations(upright, 2)
        if its.padded(-1).overlaps(box.padded(-1))
    ]
    assert not overlapping
    assert figure.get_figwidth() == WIDTH
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) > -0.02 and box.x1 < WIDTH + 0.02 and box.y1 < figure.get_figheight() + 0.02, box
    small = [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_fontsize() < SMALL]
    assert not small, small
    for axes in figure.axes:
        lines = series(axes)
        assert len(lines) <= MOST
        for above, below in itertools.pairwise(lines):
            names = above.get_label(), below.get_label()
            assert abs(lightness(above.get_color()) - lightness(below.get_color())) > least, names
        assert len(labels(axes)) <= MOST, list(labels(axes))
        moved = {name: text.get_position()[1] - np.clip(text.xy[1], 0, 1) for name, text in labels(axes).items()}
        assert all(abs(by) < far for by in moved.values()), f"labels far from the ends of their lines: {moved}"


def colours(figure):
    """The colour of each series of a figure, by label."""
    return {str(line.get_label()): line.get_color() for axes in figure.axes for line in series(axes)}
