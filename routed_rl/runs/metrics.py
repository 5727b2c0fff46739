"""Metrics as CSV: exact bytes, one line per row, and a file that can be cut back to a checkpoint's row."""

import csv
import io
import numbers
import os
from collections.abc import Mapping
from pathlib import Path

from routed_rl.runs.files import StrPath


class MetricsCSV:
    """Rows appended to a CSV file, each on the disk's side of the process when `append` returns.

    The first row fixes the columns. Floats are written by `repr`, so reading gives back the same bits
    and equal rows are equal bytes; a missing value is an empty cell. Opening a file that was there
    cuts off a last line that a killed writer left unfinished.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self.columns: tuple[str, ...] = ()
        self.rows = 0
        self._file = self.path.open("ab")
        lines = _complete_lines(self.path)
        self._cut(lines, max(len(lines) - 1, 0))

    def append(self, row: Mapping[str, float | str]) -> None:
        """Append one row of numbers (ints, floats, numpy's) and one-line strings.

        Raises ValueError for a column that the first row did not have, TypeError for any other value.
        """
        if not row:
            raise ValueError(f"metrics {str(self.path)!r}: a row without values")
        columns = self.columns or tuple(row)
        if unknown := [name for name in row if name not in columns]:
            raise ValueError(f"metrics {str(self.path)!r}: column {unknown[0]!r} is none of {list(columns)}")
        lines = [] if self.columns else [[_cell(name, name) for name in columns]]
        lines.append([_cell(name, row[name]) if name in row else "" for name in columns])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self._file.write(text.getvalue().encode())
        self._file.flush()
        self.columns = columns
        self.rows += 1

    def truncate(self, rows: int) -> None:
        """Cut the file back to its first `rows` rows; ValueError if it has not as many."""
        self._cut(_complete_lines(self.path), rows)

    def sync(self) -> None:
        """Return once every row is on the disk itself, safe from a power failure too."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; every row is already in it."""
        self._file.close()

    def _cut(self, lines: list[bytes], rows: int) -> None:
        if not 0 <= rows <= max(len(lines) - 1, 0):
            raise ValueError(f"metrics {str(self.path)!r} has {max(len(lines) - 1, 0)} rows, not {rows}")
        kept = lines[: rows + 1] if rows else []  # without rows no header either: the next row fixes it
        os.truncate(self.path, sum(len(line) + 1 for line in kept))
        self.columns = tuple(next(csv.reader([kept[0].decode()]))) if kept else ()
        self.rows = rows


def read_metrics(path: StrPath) -> list[dict[str, float | str]]:
    """Return the rows of a metrics file, also while it is being written; missing values are left out.

    A cell that `float` understands is a float, any other a string. Raises ValueError for a file whose
    lines have not all as many cells as the first.
    """
    lines = [next(csv.reader([line.decode()])) for line in _complete_lines(Path(path))]
    for number, line in enumerate(lines, start=1):
        if len(line) != len(lines[0]):
            raise ValueError(f"metrics {str(path)!r}: line {number} has {len(line)} cells, not {len(lines[0])}")
    return [{name: _value(cell) for name, cell in zip(lines[0], line, strict=True) if cell} for line in lines[1:]]


def _complete_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def _cell(column: str, value: object) -> str:
    if isinstance(value, str):
        if "\n" in value or "\r" in value:
            raise ValueError(f"metrics: {column!r} is {value!r}, which is more than one line")
        return value
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    raise TypeError(f"metrics: {column!r} is a {type(value).__name__}, neither a number nor a string")


def _value(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell
