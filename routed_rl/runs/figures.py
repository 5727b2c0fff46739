"""Where figures are drawn: without a window, so that a figure's bytes depend on the figure alone.

Figures do not go through pyplot: nothing stays open, and a notebook shows a figure when it is returned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], layout: Any = None, **axes: Any) -> Any:
    """Return a new figure and its axes, as ``matplotlib.pyplot.subplots`` does.

    Args:
        figsize: width and height in inches.
        layout: of the figure, ``"constrained"`` say.
        axes: what ``Figure.subplots`` takes: sharex, sharey, squeeze.
    """
    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **axes)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file of 150 dots per inch."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
