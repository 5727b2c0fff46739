"""How figures are drawn: in one style, without a window, so that a figure's bytes depend on the figure alone.

Figures do not go through pyplot: nothing stays open, and a notebook shows a figure when it is returned.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from routed_rl.runs.files import write_bytes
from routed_rl.runs.style import styled
from routed_rl.runs.tables import half_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0
"""Width of a figure in inches. Text of 8 points can be read when the figure is shown 800 pixels wide."""
MOST = 7
"""Largest number of series in a panel."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", "p", ">", "h")
"""Markers that tell curves apart without colour."""
PALETTE = {
    "black": "#000000",
    "brown": "#661100",
    "indigo": "#332288",
    "wine": "#882255",
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "pink": "#cc79a7",
    "teal": "#44aa99",
    "orange": "#e69f00",
    "sky": "#56b4e9",
}
"""Colours that colour-blind readers can tell apart (Okabe and Ito 2008, Tol 2021), from dark to light."""
GREYS = ("#444444", "#666666", "#888888", "#999999")
"""Shades for controls and for lines to compare with, from dark to light."""


def subplots(rows: int = 1, columns: int = 1, *, height: float, **axes: Any) -> Any:
    """Return a new figure and its axes, as ``matplotlib.pyplot.subplots`` does.

    Args:
        height: of the figure, in inches.
        axes: what ``Figure.subplots`` takes: sharex, sharey, squeeze, height_ratios.
    """
    return _made(height, lambda figure: figure.subplots(rows, columns, **axes))


def mosaic(layout: list[Any], *, height: float, **axes: Any) -> Any:
    """Return a new figure and its axes by name, as ``matplotlib.pyplot.subplot_mosaic`` does.

    Args:
        layout: the names of the axes, in rows.
        height: of the figure, in inches.
        axes: what ``Figure.subplot_mosaic`` takes.
    """
    return _made(height, lambda figure: figure.subplot_mosaic(layout, **axes))


@styled()
def _made(height: float, add: Callable[[Figure], Any]) -> Any:
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    made = add(figure)
    for each in figure.axes:  # ticks are made when they are drawn, perhaps in another style
        each.tick_params(which="both", labelsize=rcParams["xtick.labelsize"])
    return figure, made


def save(figure: Figure, path: Path) -> None:
    """Write a figure, atomically, in the format that the path ends in; PNG has 150 dots per inch."""
    write_bytes(path, _drawn(figure, path.suffix[1:]))


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file, as :func:`save` writes them."""
    return _drawn(figure, "png")


def title(figure: Figure) -> str:
    """Return the title of a figure, or that of its first panel, on one line."""
    panels = (axes.get_title() or axes.get_title(loc="left") for axes in figure.axes)
    return " ".join((figure.get_suptitle() or next(filter(None, panels), "")).split())


@styled()
def _drawn(figure: Figure, kind: str) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, metadata={"Software": None})
    return drawn.getvalue()


def ordered_colour(level: float) -> Any:
    """Return the colour of a level between 0 (light green) and 1 (dark violet): one scale for all figures."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.75 * (1 - level))  # the lighter quarter cannot be read on white


def in_panels(series: Sequence[Any], most: int = MOST) -> list[Sequence[Any]]:
    """Split a sequence into as few parts of nearly equal length as possible, with at most so many entries each."""
    panels = -(-len(series) // most)
    return [list(part) for part in np.array_split(np.array(series, dtype=object), panels)] if panels else []


def draw_means(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    samples: Sequence[Sequence[float]] | Sequence[np.ndarray] | np.ndarray,
    *,
    bars: slice = slice(None),
    **look: Any,
) -> None:
    """Draw the mean over seeds as a line, with 95 % intervals as thin bars.

    Two seeds are drawn as dots, because their interval is 12.7 standard errors. The limits of the axes hold the results
    of all seeds. An interval that is wider is cut off.

    Args:
        x: places on the horizontal axis, P of them.
        samples: the results of all seeds, for each of the P places.
        bars: the places that have a bar, or dots.
        look: label, color, marker and what else ``Axes.plot`` takes.
    """
    from matplotlib.collections import LineCollection

    means = [float(np.mean(values)) for values in samples]
    axes.plot(x, means, **look)
    ends, dots = [], []
    for place, (at, mean, values) in enumerate(zip(x, means, samples, strict=True)):
        seeds = [(at, value) for value in values]
        axes.update_datalim(seeds)
        if place not in range(len(samples))[bars]:
            continue
        if len(seeds) > 2:
            half = half_interval(np.asarray(values))
            ends.append([(at, mean - half), (at, mean + half)])
        elif len(seeds) == 2:
            dots += seeds
    colour = look.get("color")
    axes.add_collection(LineCollection(ends, colors=colour, linewidths=0.9, alpha=0.8), autolim=False)
    if dots:
        axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=3, alpha=0.8)


def draw_bars(
    axes: Axes, places: Sequence[float] | np.ndarray, samples: Sequence[np.ndarray], width: float, **look: Any
) -> None:
    """Draw a bar for each mean over seeds, with its 95 % interval as a thin line; two seeds are dots.

    Args:
        places: on the horizontal axis, P of them.
        samples: the results of all seeds, for each of the P places.
        width: of a bar.
        look: label, color and what else ``Axes.bar`` takes.
    """
    halves = [half_interval(values) if len(values) > 2 else np.nan for values in samples]
    line = {"elinewidth": 0.9, "capsize": 0}
    axes.bar(places, [values.mean() for values in samples], width, yerr=halves, error_kw=line, **look)
    for place, values in zip(places, samples, strict=True):
        if len(values) == 2:
            axes.plot([place, place], values, "o", markersize=2.5, color="black", mfc="white", mew=0.7)


def over_seeds(numbers: Iterable[int]) -> str:
    """Say what is drawn of so many seeds: "mean of 3 seeds, 95 % confidence intervals", for example."""
    counts = sorted(set(numbers))
    if counts == [1]:
        return "one seed"
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    shown = ["95 % confidence intervals"] * (counts[-1] > 2) + ["dots: both seeds"] * (2 in counts)
    return f"mean of {many} seeds, {'; '.join(shown)}"
