"""The progress display of every long command: steps done, time elapsed, time remaining."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_display(*, unit: str = "steps", disable: bool = False) -> Progress:
    """Return a progress display on standard error. Add one task per run, with its number of steps as total."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} / {task.total:,.0f} " + unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable,
    )


@contextmanager
def progress_bar(what: str, total: int, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show one progress bar within the block. The yielded function advances it by a step and ignores its arguments."""
    with progress_display(disable=not shown) as display:
        task = display.add_task(what, total=total)
        yield lambda *_: display.advance(task)
