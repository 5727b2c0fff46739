"""Where figures are drawn: without a window, so that a figure's bytes depend on the figure alone.

Figures do not go through pyplot: nothing stays open, and a notebook shows a figure when it is returned.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routed_rl.runs.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", "p", ">", "h")
"""Markers that tell curves apart without colour."""
COLOURS = {"diamond": "#2a9d8f", "ghost": "#8d5a97", "unsteered": "#6c757d", "naive": "#e76f51"}
"""Colours of outcomes and policies, the same in all figures."""


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], layout: Any = None, **axes: Any) -> Any:
    """Return a new figure and its axes, as ``matplotlib.pyplot.subplots`` does.

    Args:
        figsize: width and height in inches.
        layout: of the figure, ``"constrained"`` say.
        axes: what ``Figure.subplots`` takes: sharex, sharey, squeeze.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **axes)


def colormap(name: str) -> Any:
    """Return the colormap of matplotlib that has this name."""
    from matplotlib import colormaps

    return colormaps[name]


def save(figure: Figure, path: Path) -> None:
    """Write a figure, atomically, in the format that the path ends in; PNG has 150 dots per inch."""
    write_bytes(path, _drawn(figure, path.suffix[1:]))


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file, as :func:`save` writes them."""
    return _drawn(figure, "png")


def _drawn(figure: Figure, kind: str) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, dpi=150, metadata={"Software": None})
    return drawn.getvalue()


def ranked(axes: Axes) -> tuple[list[Any], list[str]]:
    """Handles and labels for a legend, in the order of the curves at their right end, highest first."""
    entries = list(zip(*axes.get_legend_handles_labels(), strict=True))
    lines: dict[str, Any] = {label: handle[0] if isinstance(handle, tuple) else handle for handle, label in entries}
    entries.sort(key=lambda entry: -float(lines[entry[1]].get_ydata()[-1]))
    return [handle for handle, _ in entries], [label for _, label in entries]
