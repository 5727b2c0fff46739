"""Metrics: exact bytes and floats; files can be cut back, and survive a half-written last line."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.runs import MetricsCSV, read_metrics

Opened: TypeAlias = Callable[[Path], MetricsCSV]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Open metrics files, and close them after the test."""
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(closing(MetricsCSV(path)))


def test_the_bytes(tmp_path: Path, opened: Opened) -> None:
    metrics = opened(tmp_path / "m.csv")
    metrics.append({"step": 1, "loss": 0.1, "name": 'a, "b"'})
    metrics.append({"loss": np.float32(0.1), "step": np.int64(2)})
    expected = b'step,loss,name\n1,0.1,"a, ""b"""\n2,0.10000000149011612,\n'
    assert (tmp_path / "m.csv").read_bytes() == expected  # while it is still open
    assert metrics.rows == 2
    assert read_metrics(tmp_path / "m.csv") == [
        {"step": 1.0, "loss": 0.1, "name": 'a, "b"'},
        {"step": 2.0, "loss": 0.10000000149011612},
    ]


@settings(derandomize=True, database=None, deadline=None, max_examples=50)
@given(values=st.lists(st.floats() | st.integers(-(2**53), 2**53), min_size=1, max_size=5))
def test_numbers_come_back_to_the_bit(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("metrics") / "m.csv"
    with closing(MetricsCSV(path)) as metrics:
        for value in values:
            metrics.append({"value": value})
    found = [row["value"] for row in read_metrics(path)]
    assert [np.float64(v).tobytes() for v in found if v == v] == [np.float64(v).tobytes() for v in values if v == v]
    assert [v != v for v in found] == [v != v for v in values]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_cut_back_and_written_again_is_the_same(tmp_path: Path, opened: Opened, rows: int) -> None:
    path = tmp_path / "m.csv"
    metrics = opened(path)
    for step in range(3):
        metrics.append({"step": step})
    whole = path.read_bytes()
    metrics.truncate(rows)
    assert (metrics.rows, len(read_metrics(path))) == (rows, rows)
    for step in range(rows, 3):
        metrics.append({"step": step})
    assert path.read_bytes() == whole
    with pytest.raises(ValueError, match="has 3 rows and cannot be cut back to 4"):
        metrics.truncate(4)


def test_a_file_torn_anywhere_reopens_with_its_complete_rows(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "m.csv"
    metrics = opened(path)
    for step in range(3):
        metrics.append({"step": step, "text": "x"})
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = max(whole[:length].count(b"\n") - 1, 0)
        assert len(read_metrics(path)) == complete
        again = opened(path)
        assert again.rows == complete
        for step in range(again.rows, 3):
            again.append({"step": step, "text": "x"})
        assert path.read_bytes() == whole


def test_rows_that_do_not_fit_are_refused_and_leave_no_trace(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "m.csv"
    metrics = opened(path)
    with pytest.raises(ValueError, match="must have at least one value"):
        metrics.append({})
    metrics.append({"step": 1})
    with pytest.raises(ValueError, match=r"column 'los' is not one of .* \['step'\]"):
        metrics.append({"step": 2, "los": 0.5})
    with pytest.raises(TypeError, match="'step' must hold a number or a string, got a list"):
        metrics.append({"step": [1]})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="must be one line"):
        metrics.append({"step": "a\nb"})
    assert path.read_bytes() == b"step\n1\n"
    path.write_bytes(b"a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match="line 3 has 1 cells, not 2"):
        read_metrics(path)
