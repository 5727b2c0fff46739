"""Where figures are drawn: no window, and a file whose bytes depend on the figure alone."""

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def save(figure: Any, path: Any) -> None:
    """Write a figure and free it."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
