"""The progress display that every long command shows: steps done, time gone, time to go."""

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
