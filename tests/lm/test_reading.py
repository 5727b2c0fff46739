"""Every door for the user's files has the same manners: each kind of file, through each of them."""

import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from routed_rl.lm import inputs, read_documents, read_prompts, text_corpus
from routed_rl.lm.finders import find_words, listed, read_words, single_tokens
from routed_rl.wording import command_line
from tests.lm.texts import tokenizer


@dataclass(frozen=True)
class Door:
    """A function that reads a file of some name, and the lines of such a file: of a word, and all of them."""

    read: Callable[[Path], Any]
    name: str
    line: Callable[[str], str]


def texts(path: Path) -> list[str]:
    return [document.text for document in read_documents(path)]


def prompt(word: str) -> str:
    row = {"prompt": word, "answer": word, "forget": len(word) > 5}
    return json.dumps(row, ensure_ascii=False)


DOORS = {
    "paragraphs": Door(texts, "a.txt", str),
    "rows": Door(texts, "a.jsonl", lambda word: json.dumps({"text": word}, ensure_ascii=False)),
    "folder": Door(lambda path: texts(path.parent), "a.TXT", str),
    "prompts": Door(read_prompts, "p.jsonl", prompt),
    "words": Door(lambda path: listed("words", [str(path)]), "words", str),
    "tokens": Door(lambda path: listed("tokens", [str(path)]), "tokens", str),
}
WORDS = ("naïve", "東京\u2028\x85の駅です", "end")
OF_ROWS = [name for name in DOORS if DOORS[name].name.endswith(".jsonl")]
ENCODED = {
    "as it is": lambda text: text.encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "lines of Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "lines of old Macs": lambda text: text.replace("\n", "\r").encode(),
    "empty lines": lambda text: f"\n \n{text}\n\n".encode(),
}


@pytest.mark.parametrize("how", ENCODED)
@pytest.mark.parametrize("door", DOORS)
def test_a_text_is_the_same_however_it_is_saved(tmp_path: Path, door: str, how: str) -> None:
    of = DOORS[door]
    path = tmp_path / of.name
    path.write_bytes(ENCODED[how]("\n".join(map(of.line, WORDS))))
    found = of.read(path)
    if door == "prompts":
        assert [(prompt.text, prompt.answer) for prompt in found] == [(word, word) for word in WORDS]
    elif door in ("paragraphs", "folder"):
        assert found == [" ".join(" ".join(WORDS).split())], "a paragraph is one line of text"
    else:
        assert list(found) == list(WORDS)


NO_UNICODE = {
    "Latin-1": (lambda line: line.encode("latin-1"), "the byte 0xef is not UTF-8 text: save the file as UTF-8"),
    "half a character, in UTF-8": (
        lambda line: line.encode().replace("ï".encode(), b"\xed\xa0\xbd"),
        "the byte 0xed is not UTF-8",
    ),
    "UTF-16": (lambda line: line.encode("utf-16")[2:], "the byte 0xef is not UTF-8"),
}
NO_ROWS = {
    "half a character, escaped": ('{"text": "\\ud83d", "prompt": "a", "answer": "\\ud83d", "forget": true}', "Unicode"),
    "no JSON": ('{"text": ', "not JSON: Expecting value"),
    "deep JSON": ("[" * 100_000, "nested too deeply"),
    "a long number": (f'{{"text": {"1" * 5000}}}', "not JSON: Exceeds the limit"),
    "a list": ('["fine"]', "expected a JSON object on each line, got "),
    "null": ('{"text": null, "prompt": null, "answer": "a", "forget": true}', r"'text' \(null\)|'prompt': None"),
    "no field": ('{"id": 3}', r"'id' \(int\)|'id': 3"),
    "a number": ('{"text": 3, "prompt": 3, "answer": "a", "forget": true}', r"'text' \(int\)|'prompt': 3"),
}
REFUSED = [(door, how, *NO_UNICODE[how]) for door in DOORS for how in NO_UNICODE]
REFUSED += [
    (door, how, lambda _, line=NO_ROWS[how][0]: line.encode(), NO_ROWS[how][1]) for door in OF_ROWS for how in NO_ROWS
]


@pytest.mark.parametrize(
    ("door", "how", "encode", "message"), REFUSED, ids=[f"{door}-{how}" for door, how, *_ in REFUSED]
)
def test_what_is_wrong_is_said_with_the_file_and_the_line(
    tmp_path: Path, door: str, how: str, encode: Callable[[str], bytes], message: str
) -> None:
    of = DOORS[door]
    path = tmp_path / of.name
    path.write_bytes(f"{of.line('first')}\n".encode() + encode(of.line("naïve")))
    with pytest.raises(ValueError, match=message) as raised:
        of.read(path)
    assert type(raised.value) is ValueError, "no library's own error"
    assert f"{str(path)!r}, line 2: " in str(raised.value) and "\n" not in str(raised.value)


def test_spaces_of_tokens_are_kept_and_those_around_words_are_not(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text(" war\n\nwar \n")
    assert listed("tokens", [str(file)]) == [" war", "war "]
    assert listed("words", [str(file)]) == read_words(file) == ["war", "war"]
    file.write_text(" a\n")
    given = [" a"]
    assert single_tokens(tokenizer(), listed("tokens", [str(file)])) == single_tokens(tokenizer(), given)


@pytest.mark.parametrize("name", ["words", "tokens"])
@pytest.mark.parametrize("kind", ["nothing", "a dead link", "a folder"])
def test_a_list_that_is_not_there_is_no_word(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "dragons.TXT"
    if kind == "a dead link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "a folder":
        path.mkdir()
    with command_line(), pytest.raises(ValueError, match=rf"--{name} '.*dragons.TXT': there is no such file"):
        listed(name, [str(path)])
    assert listed(name, ["dragons", "war.txt"]) == ["dragons", "war.txt"]
    assert list(listed(name, ["x" * 5000])) == ["x" * 5000], "a phrase that is too long for a file name"


def folder_of(path: Path) -> Path:
    """Return a folder with two texts, and with what is no text."""
    for name in ("b.TXT", "sub/a.jsonL", ".hidden.txt", ".ipynb_checkpoints/b-checkpoint.txt", "notes.md", "far/c.txt"):
        file = path / "texts" / name if name != "far/c.txt" else path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"text": "one"}' if file.suffix == ".jsonL" else "two")
    (path / "texts" / "old.txt").mkdir()
    (path / "texts" / "dead.txt").symlink_to("/nowhere")
    os.mkfifo(path / "texts" / "pipe.txt")
    (path / "texts" / "link").symlink_to(path / "far")
    return path / "texts"


def test_a_folder_holds_its_texts_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    said = (
        f"the folder {str(folder)!r}: files read: 2; left out: 1 neither .txt nor .jsonl ('notes.md'), 2 hidden "
        "('.ipynb_checkpoints'), 1 links to folders ('link'), 2 not there, or not files ('dead.txt')"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(said)}$"):
        assert texts(folder) == ["two", "one"]
    hidden = folder.rename(tmp_path / ".texts")
    with pytest.warns(UserWarning, match="files read: 2"):
        assert texts(hidden) == ["two", "one"], "a hidden folder that is named is read"
    for file in (hidden / "b.TXT", hidden / "sub" / "a.jsonL"):
        file.unlink()
    with pytest.raises(ValueError, match=r"holds no \.txt or \.jsonl file, but 1 neither"):
        texts(hidden)


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scandir = folder_of(tmp_path), os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"'.*texts/sub'"):
        texts(folder)


def test_hidden_files_do_not_change_what_a_folder_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    before = inputs.text_identity(str(folder))
    (folder / ".DS_Store").write_bytes(b"new")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD.txt").write_text("new")
    assert inputs.text_identity(str(folder)) == before
    (folder / "b.TXT").write_text("three")
    assert inputs.text_identity(str(folder)) != before


@pytest.mark.parametrize("limit", [None, 2])
def test_blank_documents_are_counted_and_said_once(tmp_path: Path, limit: int | None) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("", "one", " \n", "two")))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(2):
            assert [document.text for document in read_documents(file, limit)] == ["one", "two"]
    assert [str(one.message) for one in said] == [f"{str(file)!r}: blank documents left out: 2"]


def test_a_text_that_is_not_unicode_is_refused_in_lists_too() -> None:
    for given in ("\ud83d", {"text": "\ud83d"}):
        with pytest.raises(ValueError, match=r"^forget\[1\]: the text is not Unicode: '\\ud83d' is half"):
            text_corpus(tokenizer(), ["a", given], ["b"])
    for refuse in (
        lambda word: find_words([word]),
        lambda word: single_tokens(tokenizer(), [word]),
        inputs.find_pattern,
    ):
        with pytest.raises(ValueError, match=r"^the (word|token|pattern) 'caf\\udce9': the text is not Unicode"):
            refuse("caf\udce9")
