"""Corpora as directories: when they are opened again or refused, and what is left if writing fails."""

import errno
import os
import re
import resource
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from routed_rl.lm import corpora, tokenising
from routed_rl.lm.corpora import build_corpus, open_corpus
from routed_rl.lm.documents import Document, read_documents
from routed_rl.lm.finders import find_pattern, find_topic, find_words
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from tests import forks
from tests.lm.texts import DOCUMENTS, WAR, build, random_documents, texts_of

# --- the same corpus, or another ----------------------------------------------------------------


def never() -> Iterator[Document]:
    raise AssertionError("documents are read again")
    yield


def test_the_same_corpus_is_opened_again(tmp_path: Path) -> None:
    options = {"about": {"words": ("war", "navy")}, "forget_tokens": [9, 7], "validation": 0.2}
    built = build(tmp_path, **options)
    again = build(tmp_path, never(), **{**options, "forget_tokens": np.array([7, 9, 7])})
    for name in ("tokens", "forget", "starts", "validation"):
        assert np.array_equal(getattr(built, name), getattr(again, name))
    assert built.about == again.about == open_corpus(tmp_path / "corpus").about
    assert built.about["words"] == ["war", "navy"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"about": {"words": ["war"]}}, r"its words is \['army'\], not \['war'\]"),
        ({"about": {"words": ["army"], "file": "a"}}, "its file is None, not 'a'"),
        ({"about": None}, r"its words is \['army'\], not None"),
        ({"per": "token"}, "its per is 'document', not 'token'"),
        ({"forget_tokens": [5]}, r"its forget_tokens is \[\], not \[5\]"),
        ({"validation": 0.2}, "its validation is 0.1, not 0.2"),
        ({"max_characters": 90}, "its max_characters is None, not 90"),
        ({"max_tokens": 90}, "its max_tokens is None, not 90"),
    ],
)
def test_another_corpus_is_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    options = {"about": {"words": ["army"]}}
    build(tmp_path, **options)
    with pytest.raises(ValueError, match=rf"corpus' holds another corpus: {message}"):
        build(tmp_path, **(options | changed))
    build(tmp_path, never(), **options)


def test_a_corpus_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    build_corpus(tmp_path / "corpus", generate_stories(200, 0), stories_tokenizer(), find_topic("forest"))
    with pytest.raises(ValueError, match="another corpus: its tokenizer_digest is"):
        build(tmp_path)


def test_what_is_no_corpus_stays(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.txt").write_text("text")
    with pytest.raises(ValueError, match=r"no complete corpus in .*corpus'"):
        build(tmp_path)
    assert (tmp_path / "corpus" / "thesis.txt").read_text() == "text"
    with pytest.raises(ValueError, match="no complete corpus"):
        open_corpus(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokens.npy", "forget.npy", "starts.npy", "validation.npy", "corpus.json"])
def test_a_damaged_corpus_is_refused(tmp_path: Path, name: str) -> None:
    build(tmp_path)
    file = tmp_path / "corpus" / name
    content = file.read_bytes()
    for damaged in (content[:-9], b"", None):
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="no complete corpus") as raised:
                open_corpus(tmp_path / "corpus")
            assert "\n" not in str(raised.value)
    if name == "corpus.json":
        return
    build(tmp_path / "other", DOCUMENTS[:-10])
    file.write_bytes((tmp_path / "other" / "corpus" / name).read_bytes())
    with pytest.raises(ValueError, match="damaged: the lengths of its arrays do not match"):
        open_corpus(tmp_path / "corpus")


# --- what goes wrong ----------------------------------------------------------------------------


def file_of(content: bytes, name: str) -> Callable[[Path], Iterator[Document]]:
    def documents(folder: Path) -> Iterator[Document]:
        (folder / name).write_bytes(content)
        return read_documents(str(folder / name))

    return documents


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        (file_of(b"", "a.txt"), {}, "the corpus has no documents"),
        (
            file_of(b'{"text": "fine"}\n{"story": "?"}', "a.jsonl"),
            {},
            "line 2: a row needs texts in a field 'text'; .*; this one has 'story'",
        ),
        (file_of(b"fine\n\n\xff", "a.txt"), {}, "is not UTF-8"),
        (DOCUMENTS, {"finder": find_words(["zebra"])}, "none of 300 documents are forget documents"),
        (DOCUMENTS, {"finder": None}, "none of 300 documents are forget documents"),
        (DOCUMENTS, {"finder": find_pattern(".")}, "all of 300 documents are forget documents"),
        (DOCUMENTS, {"validation": 0}, "no forget documents in its validation split, of 300"),
        (DOCUMENTS, {"validation": 1.0}, "no forget documents in its train split, of 300"),
        (DOCUMENTS, {"max_characters": 0}, "max_characters must be at least 1, got 0"),
        (DOCUMENTS, {"max_tokens": 1}, "max_tokens must be at least 2, got 1"),
        (DOCUMENTS, {"forget_tokens": [3, 320, -1]}, r"ids within 0 … 319, got \[320, -1\]"),
        (DOCUMENTS, {"about": {"share": float("nan")}}, "about.share is nan, which JSON cannot hold"),
    ],
)
def test_bad_input_gives_a_line_and_no_corpus(
    tmp_path: Path, documents: object, options: dict[str, object], message: str
) -> None:
    (tmp_path / "corpora").mkdir()
    with pytest.raises(ValueError, match=message) as raised:
        build(tmp_path / "corpora", documents(tmp_path) if callable(documents) else documents, **options)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "corpora").iterdir())


def test_tokenizers_that_cannot_do_it(tmp_path: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="needs a fast tokenizer: Slow does not locate its tokens"):
        build_corpus(tmp_path / "corpus", DOCUMENTS, Slow(), WAR, per="token")
    assert not list(tmp_path.iterdir())


def test_documents_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "CHUNK", 10)
    alive: weakref.WeakSet[Document] = weakref.WeakSet()
    most = 0

    def documents() -> Iterator[Document]:
        nonlocal most
        for document in random_documents(300, seed=1):
            alive.add(document)
            most = max(most, len(alive))
            yield document

    build(tmp_path, documents())
    assert most <= 25


def os_message(number: int) -> str:
    return re.escape(f"[Errno {number}]")


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError, match=os_message(errno.EFBIG)):
            build(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    assert len(build(tmp_path).validation) == 300


@pytest.mark.parametrize("name", ["_write_header", "write_json", "sync", "open_corpus"])
def test_whatever_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpora, name, full)
    with pytest.raises(OSError, match=os_message(errno.ENOSPC)):
        build(tmp_path)
    assert not list(tmp_path.iterdir())


def build_and_die(path: Path) -> None:
    def documents() -> Iterator[Document]:
        yield from generate_stories(2500, 0)
        os.kill(os.getpid(), signal.SIGKILL)

    build_corpus(path, documents(), stories_tokenizer(), find_topic("forest"))


def test_a_killed_build_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "corpus"
    log = tmp_path / "log"
    assert forks.run(log, build_and_die, path) == -signal.SIGKILL, log.read_text()
    (left,) = path.parent.iterdir()
    assert left != path and any(file.stat().st_size for file in left.iterdir())
    for place in (path, left):
        with pytest.raises(ValueError, match="no complete corpus"):
            open_corpus(place)
    corpus = build_corpus(path, generate_stories(300, 0), stories_tokenizer(), find_topic("forest"))
    assert len(corpus.validation) == 300


@pytest.mark.parametrize("same", [True, False])
def test_two_that_build_at_once(tmp_path: Path, same: bool) -> None:
    """The slower process takes the faster one's corpus, if it is the same."""

    def documents() -> Iterator[Document]:
        yield from DOCUMENTS
        build(tmp_path, validation=0.1 if same else 0.2)

    if same:
        assert texts_of(build(tmp_path, documents())) == [document.text for document in DOCUMENTS]
    else:
        with pytest.raises(ValueError, match=r"its validation is 0\.2, not 0\.1"):
            build(tmp_path, documents())
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus"]
