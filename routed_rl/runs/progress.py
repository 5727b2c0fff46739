"""The progress display that every long command shows: steps done, time gone, time to go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_display(*, unit: str = "steps", disable: bool = False) -> Progress:
    """A display on standard error; add a task per run, with its environment steps (or other units) as total."""
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
    """One bar for one task; what it yields advances the bar by a step, whatever its arguments."""
    with progress_display(disable=not shown) as display:
        task = display.add_task(what, total=total)
        yield lambda *_: display.advance(task)
