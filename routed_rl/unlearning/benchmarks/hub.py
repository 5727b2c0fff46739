"""Published data: from the Hugging Face Hub, or from files that were downloaded from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routed_rl.errors import UserError, user_input
from routed_rl.lm.documents import hub_rows
from routed_rl.lm.reading import rows
from routed_rl.paths import expanded
from routed_rl.unlearning.benchmarks.fields import Fields
from routed_rl.wording import written

ENDINGS = (".parquet", ".jsonl", ".json")
"""Endings of the names of files that are read."""


@dataclass(frozen=True)
class Published:
    """A repository of datasets.

    Attributes:
        repository: its name on the Hub.
        folder: a folder with its files, or with a folder of the repository's own name that has them. None: the Hub.
    """

    repository: str
    folder: str | None = None

    def read(self, configuration: str, split: str = "train") -> list[Fields]:
        """Return the rows of a configuration's split.

        In a folder, they are in ``CONFIGURATION/SPLIT*`` or ``CONFIGURATION.*``, as on the Hub.

        Raises:
            UserError: if the folder has no such file, or the file cannot be read.
            ConnectionError: if the Hub cannot be read. The message is one line.
        """
        if self.folder is None:
            advice = "; give a folder with its files as --data"
            found = enumerate(hub_rows(self.repository, configuration, split, advice), start=1)
            name = f"{self.repository!r}, {configuration}, {split}"
            read = [Fields(f"{name}, row {number}", row) for number, row in found]
        else:
            with user_input():
                read = [row for path in self._files(configuration, split) for row in _rows(path)]
        if not read:
            raise UserError(f"{self.repository!r}: the split {split!r} of {configuration!r} has no rows")
        return read

    def texts(self, configuration: str, split: str = "train") -> list[dict[str, str]]:
        """Return the documents of a corpus, without those that are blank; see :meth:`read`.

        Raises:
            UserError: also for a row without a field ``text``.
        """
        read = (row for row in self.read(configuration, split) if str(row.row.get("text", "?")).strip())
        return [{"text": row.text("text")} for row in read]

    def _files(self, configuration: str, split: str) -> list[Path]:
        top = expanded(str(self.folder))
        if not top.is_dir():
            raise UserError(
                f"{written('--data', str(self.folder))} is not a folder; it must have the files of {self.repository}"
            )
        for folder in (top / self.repository.rpartition("/")[2], top):
            of_split = [folder / configuration / f"{split}{part}" for part in ("", "-*")]
            for pattern in (*of_split, folder / configuration):
                for ending in ENDINGS:
                    if found := sorted(pattern.parent.glob(f"{pattern.name}{ending}")):
                        return found
        there = sorted(path.name for path in top.iterdir() if not path.name.startswith("."))
        raise UserError(
            f"the folder {str(self.folder)!r} has no file {configuration}/{split}-*.parquet, {configuration}.json or "
            f"{configuration}.jsonl of {self.repository}; it has {', '.join(there) or 'nothing'}"[:400]
        )


def _rows(path: Path) -> Iterator[Fields]:
    """Yield the rows of a file: Parquet, a JSON object on each line, or a JSON list of objects."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        listed = pyarrow.parquet.read_table(path).to_pylist()
    elif path.suffix == ".json" and path.read_text(encoding="utf-8-sig").lstrip().startswith("["):
        listed = _list(path)
    else:
        yield from (Fields(where, row) for where, row in rows(path))
        return
    yield from (Fields(f"{str(path)!r}, row {number}", row) for number, row in enumerate(listed, start=1))


def _list(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: not JSON: {error}") from None
    if not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{str(path)!r}: expected a list of JSON objects")
    return found  # type: ignore[no-any-return]
