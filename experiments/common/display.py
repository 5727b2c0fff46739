"""What commands print: tables and Markdown that keep their numbers whole, on any terminal and in a pipe.

A line of text is printed by ``print``, which neither wraps it nor reads markup in it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.table import Table
from rich.text import Text

from routed_rl.experiments.common.characters import printable

UNLIMITED = 10**6
"""Width of what is no terminal: nothing is wrapped there."""


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Print a title and a table. Where the terminal is too narrow for the table, print a line for each cell.

    Args:
        header: names of the columns.
        rows: cells, as plain text.
        left: numbers of the columns that are text. The others are numbers.
    """
    print(title)
    terminal().print(_Table([*map(printable, header)], [[*map(printable, row)] for row in rows], left), crop=False)


def show_markdown(text: str) -> None:
    """Print Markdown: rendered in a terminal, else as it is, with a row of a table on each line."""
    if sys.stdout.isatty():
        terminal().print(_Rendered(printable(text)), crop=False)
    else:
        print(text)


def terminal() -> Console:
    """Return a console for standard output. It has no limit of width unless it is a terminal."""
    return Console(width=None if sys.stdout.isatty() else UNLIMITED)


class _Table:
    """A table where it fits, with words wrapped between columns of whole numbers; else a line for each cell."""

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> None:
        self.header, self.rows, self.left = header, rows, left

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(options.max_width)
        if widths is None:
            for first, *others in self.rows:
                yield _line(first)
                yield from (
                    _line(f"  {name}: {cell}") for name, cell in zip(self.header[1:], others, strict=True) if cell
                )
            return
        table = Table()
        for number, (name, width) in enumerate(zip(self.header, widths, strict=True)):
            table.add_column(Text(name), width=width, justify="left" if number in self.left else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))
        yield table

    def _widths(self, most: int) -> list[int] | None:
        """Return the widths of the columns, so that no number and no word is cut; None if they do not fit."""
        columns = list(zip(self.header, *self.rows, strict=True))
        widths, wanted = [], []
        for number, (name, *cells) in enumerate(columns):
            parts = [word for cell in cells for word in cell.split()] if number in self.left else cells
            widths.append(max(map(cell_len, [*name.split(), *parts]), default=0))
            wanted.append(max(map(cell_len, [name, *cells])))
        room = most - sum(widths) - 3 * len(widths) - 1  # what is left beside borders and spaces
        if room < 0:
            return None
        while room and (needs := max(want - width for want, width in zip(wanted, widths, strict=True))):
            widest = [want - width for want, width in zip(wanted, widths, strict=True)].index(needs)
            widths[widest], room = widths[widest] + 1, room - 1
        return widths


class _MarkdownTable(TableElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        assert self.header is not None and self.header.row is not None and self.body is not None
        cells = self.header.row.cells
        left = [number for number, cell in enumerate(cells) if cell.justify != "right"]
        rows = [[cell.content.plain for cell in row.cells] for row in self.body.rows]
        yield _Table([cell.content.plain for cell in cells], rows, left)


class _Rendered(Markdown):
    elements: ClassVar = {**Markdown.elements, "table_open": _MarkdownTable}


def _line(text: str) -> Text:
    """A line that the terminal itself wraps, between any two characters, so that it can be copied as a whole."""
    return Text(text, no_wrap=True, overflow="ignore")
