"""The progress display of every long command: steps done, time elapsed, time remaining."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

WIDE = 80
"""Columns of a terminal that has room for a bar."""


def progress_display(*, unit: str = "steps", disable: bool = False) -> Progress:
    """Return a progress display on standard error. Add one task per run, with its number of steps as total.

    It is shown where somebody sees it, in a terminal or a notebook. In a log, bars would hide the last line. In a
    narrow terminal the description takes several lines, and no number is cut.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
        *([BarColumn(bar_width=None)] if console.width >= WIDE else []),
        TextColumn("{task.completed:,.0f} / {task.total:,.0f} " + unit),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if console.width >= WIDE else []),
        console=console,
        disable=disable or not (sys.stderr.isatty() or console.is_jupyter),
    )


@contextmanager
def progress_bar(what: str, total: int, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show one progress bar within the block. The yielded function advances it by a step and ignores its arguments."""
    with progress_display(disable=not shown) as display:
        task = display.add_task(what, total=total)
        yield lambda *_: display.advance(task)
