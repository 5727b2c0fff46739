"""Metrics as CSV with exact bytes, one line per row. A resumed run cuts the file back to its checkpoint's row."""

import csv
import io
import numbers
import os
from collections.abc import Mapping
from pathlib import Path

from routed_rl.paths import expanded
from routed_rl.runs.files import StrPath


class MetricsCSV:
    """A CSV file to which rows are appended. When `append` returns, the row survives a kill of this process.

    The first row sets the columns. Floats are written with `repr`: reading returns the same bits, and equal rows are
    equal bytes. A missing value is an empty cell. If a killed writer left the last line unfinished, opening the file
    removes this line.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = expanded(path)
        self.columns: tuple[str, ...] = ()
        self.rows = 0
        self._file = self.path.open("ab")
        lines = _complete_lines(self.path)
        self._cut(lines, max(len(lines) - 1, 0))

    def append(self, row: Mapping[str, float | str]) -> None:
        """Append one row of numbers (int, float, or numpy) and one-line strings.

        Raises ValueError for an empty row, a string of several lines, or a column that the first row did not have;
        TypeError for a value of another type.
        """
        if not row:
            raise ValueError(f"metrics {str(self.path)!r}: a row must have at least one value, got {row!r}")
        columns = self.columns or tuple(row)
        if unknown := [name for name in row if name not in columns]:
            raise ValueError(
                f"metrics {str(self.path)!r}: column {unknown[0]!r} is not one of the first row's {list(columns)}"
            )
        lines = [] if self.columns else [[_cell(name, name) for name in columns]]
        lines.append([_cell(name, row[name]) if name in row else "" for name in columns])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self._file.write(text.getvalue().encode())
        self._file.flush()
        self.columns = columns
        self.rows += 1

    def truncate(self, rows: int) -> None:
        """Cut the file back to its first `rows` rows; raise a ValueError if it has fewer."""
        self._cut(_complete_lines(self.path), rows)

    def sync(self) -> None:
        """Flush all rows to the disk, so that they also survive a power failure."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; every row is already in it."""
        self._file.close()

    def _cut(self, lines: list[bytes], rows: int) -> None:
        if not 0 <= rows <= max(len(lines) - 1, 0):
            raise ValueError(
                f"metrics {str(self.path)!r} has {max(len(lines) - 1, 0)} rows and cannot be cut back to {rows}"
            )
        kept = lines[: rows + 1] if rows else []  # without rows the header goes too: the next row sets the columns
        os.truncate(self.path, sum(len(line) + 1 for line in kept))
        self.columns = tuple(next(csv.reader([kept[0].decode()]))) if kept else ()
        self.rows = rows


def read_metrics(path: StrPath) -> list[dict[str, float | str]]:
    """Return the rows of a metrics file, without missing values; the file may still be growing.

    A cell is a float if `float` can parse it, else a string. Raises ValueError if the lines of the file differ in their
    number of cells.
    """
    lines = [next(csv.reader([line.decode()])) for line in _complete_lines(expanded(path))]
    for number, line in enumerate(lines, start=1):
        if len(line) != len(lines[0]):
            raise ValueError(f"metrics {str(path)!r}: line {number} has {len(line)} cells, not {len(lines[0])}")
    return [{name: _value(cell) for name, cell in zip(lines[0], line, strict=True) if cell} for line in lines[1:]]


def _complete_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def _cell(column: str, value: object) -> str:
    if isinstance(value, str):
        if "\n" in value or "\r" in value:
            raise ValueError(f"metrics: the string in column {column!r} must be one line, got {value!r}")
        return value
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    raise TypeError(f"metrics: column {column!r} must hold a number or a string, got a {type(value).__name__}")


def _value(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell
