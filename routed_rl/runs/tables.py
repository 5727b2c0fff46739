"""Tables of results over seeds: means with intervals, CSV files, Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from routed_rl.runs import write_bytes

T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Student's t, 97.5 % quantile, by degrees of freedom from 1."""


def half_interval(values: np.ndarray | pd.Series, axis: int = 0) -> Any:
    """Half the width of the 95 % interval of a mean over ``axis``, by Student's t; NaN for a single value."""
    n = values.shape[axis]
    if n < 2:
        return np.full(np.delete(values.shape, axis), np.nan)[()]
    t = T_95[n - 2] if n - 2 < len(T_95) else 1.96 + 2.5 / (n - 1)
    return t * np.std(np.asarray(values), axis=axis, ddof=1) / np.sqrt(n)


def spread(values: pd.Series) -> dict[str, float]:
    """Mean, half the width of its 95 % interval, and the 5 and 95 % quantiles."""
    low, high = values.quantile(0.05), values.quantile(0.95)
    return {"mean": values.mean(), "half": half_interval(values), "low": low, "high": high}


def shown_mean(cell: Any, digits: int = 3) -> str:
    """A mean with half its interval, of a row of :func:`aggregate`, with so many digits after the point."""
    return f"{cell['mean']:.{digits}f}" + ("" if np.isnan(cell["half"]) else f" ± {cell['half']:.{digits}f}")


def percent(share: float) -> str:
    """Return a share as percent, with as many digits as it needs: 0.1 is "10 %"."""
    return f"{100 * share:g} %"


def least_to_most(numbers: pd.Series) -> str:
    """Return the number that all entries have, or the least and the most of them: "3", or "2 to 3"."""
    low, high = numbers.min(), numbers.max()
    return f"{low}" if low == high else f"{low} to {high}"


def aggregate(frame: pd.DataFrame, metric: str, by: Sequence[str]) -> pd.DataFrame:
    """:func:`spread` of a metric over seeds, a row for each value of ``by``."""
    groups = [{**dict(zip(by, key, strict=True)), **spread(rows)} for key, rows in frame.groupby(list(by))[metric]]
    return pd.DataFrame(groups, columns=[*by, "mean", "half", "low", "high"])


def tidy(rows: Sequence[Mapping[str, Any]] | pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return rows as a frame, sorted by those of the key columns that it has, which come first. None becomes NaN."""
    frame = pd.DataFrame(rows)
    frame = frame.where(frame.notna(), np.nan)
    present = [key for key in keys if key in frame]
    frame = frame[[*present, *(column for column in frame if column not in present)]]
    return frame.sort_values(present, kind="stable").reset_index(drop=True)


def as_csv(frame: pd.DataFrame) -> str:
    """Return a frame as the text of a CSV file, with the same bytes on every machine."""
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text


def write_table(rows: Sequence[Mapping[str, Any]] | pd.DataFrame, path: Path, keys: Sequence[str]) -> pd.DataFrame:
    """Write rows as CSV in the order of :func:`tidy`, and return them as a frame."""
    frame = tidy(rows, keys)
    write_bytes(path, as_csv(frame).encode())
    return frame


def described(frame: pd.DataFrame, meanings: Mapping[str, str]) -> dict[str, str]:
    """Return what each column of a table means.

    Args:
        meanings: by column, or by a regular expression for several columns. ``{}`` in a meaning stands for what the
            expression's group matched. The first one that matches the whole name counts.
    """
    found = {}
    for column in map(str, frame.columns):
        matches = ((re.fullmatch(pattern, column), meaning) for pattern, meaning in meanings.items())
        found[column] = next((text.format(*match.groups()) for match, text in matches if match), "not described")
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers. Cells are plain text."""
    rule = ["---", *("---:" for _ in header[1:])]
    cells = ([escaped(cell) for cell in row] for row in (header, *rows))
    return "\n".join("| " + " | ".join(row) + " |" for row in (next(cells), rule, *cells))


def escaped(text: str) -> str:
    """Return Markdown, on one line, that shows a text as it is. A text of letters and numbers stays the same."""
    text = " ".join(text.split())
    text = re.sub(r"[\\`*|<>\[\]&~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return re.sub(r"^(\d*)([-+#=.)])(?=[-+#=\s]|$)", r"\1\\\2", text)  # else a list, a heading, a rule
