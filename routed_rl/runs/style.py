"""The style of all figures, for figures of the user's own too: colours, sizes, and labels where lines end."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("routed_rl.mplstyle")
SMALL = 8
"""Size of the labels of lines and points, in points."""
GAP = 0.12
"""Inches between the right end of a panel and the labels of its lines."""


@contextmanager
def styled() -> Iterator[None]:
    """Within the block, or in a function that this decorates, Matplotlib draws in the style of this package.

    The user's own settings neither change nor matter. Draw and save in the same block::

        with styled():
            figure, axes = plt.subplots(figsize=(8, 4))
            axes.plot(steps, loss, label="routed")
            label_ends(figure)
            figure.savefig("loss.png")

    To set the style for a whole session: ``plt.style.use("routed_rl.runs.routed_rl")``.
    """
    from matplotlib import style

    with style.context(STYLE, after_reset=True):
        yield


def spread(wanted: Sequence[float], heights: Sequence[float]) -> np.ndarray:
    """Return the centres nearest to the wanted ones at which labels between 0 and 1 do not overlap.

    Args:
        wanted: centres of L labels.
        heights: heights of the L labels.
    """
    order = np.argsort(wanted, kind="stable")
    sizes = np.asarray(heights, dtype=float)[order]
    stacked = np.cumsum(sizes) - sizes / 2  # centres of labels that stand on each other, from 0 on
    groups: list[tuple[float, int]] = []  # labels that touch: how far they are moved up together, and their number
    for shift in np.asarray(wanted, dtype=float)[order] - stacked:
        groups.append((float(shift), 1))
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (upper, m), (lower, n) = groups.pop(), groups.pop()
            groups.append(((lower * n + upper * m) / (n + m), n + m))
    shifts = np.repeat([shift for shift, _ in groups], [number for _, number in groups])
    placed = np.empty(len(sizes))
    placed[order] = stacked + np.clip(shifts, 0, max(0, 1 - sizes.sum()))
    return placed


def label_ends(figure: Figure, width: int = 26) -> None:
    """Write the label of each line beside its right end, in its colour.

    Labels that would overlap are moved apart. Call this last: the limits of all axes must be final.

    Args:
        width: the longest line of a label, in characters.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.text import Text

    written: dict[Any, list[Any]] = {}
    for axes in figure.axes:
        axes.get_xlim(), axes.get_ylim()  # else limits that follow from the data are not set yet
        for line in axes.get_lines():
            if str(line.get_label()).startswith("_"):
                continue
            points = np.asarray(line.get_xydata(), dtype=float)
            points = points[np.isfinite(points).all(1)]
            if not len(points):  # losses that are infinite, say
                continue
            x, y = (line.get_transform() - axes.transAxes).transform(points[-1])
            tie = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.7, "alpha": 0.7, "relpos": (0, 0.5)}
            dark = 0.75 * np.array(to_rgb(line.get_color()))  # thin letters look lighter than a line
            label = axes.annotate(
                textwrap.fill(str(line.get_label()), width), (x, np.clip(y, 0, 1)), (1.02, y), xycoords="axes fraction",
                color=dark, fontsize=SMALL, va="center", annotation_clip=False,
                arrowprops={**tie, "shrinkA": 1, "shrinkB": 3},
            )  # fmt: skip
            written.setdefault(axes, []).append(label)
    figure.draw_without_rendering()  # the layout makes room for the labels
    for axes, labels in written.items():
        heights = [1.1 * Text.get_window_extent(label).height / axes.bbox.height for label in labels]
        places = spread([label.xy[1] for label in labels], heights)
        for label, place in zip(labels, places, strict=True):
            label.set_position((1 + GAP * figure.dpi / axes.bbox.width, place))
