"""Corpora on disk: tokens, marks, splits and labels; what is refused, and what is left when writing goes wrong."""

import errno
import re
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from routed_rl.lm import corpora
from routed_rl.lm.corpora import Corpus, build_corpus, open_corpus
from routed_rl.lm.documents import Document, read_documents
from routed_rl.lm.finders import Finder, find_pattern, find_topic, find_words
from routed_rl.lm.stories import stories, stories_tokenizer
from routed_rl.routing import LabelNoise
from tests.lm.texts import corpus_of, of_document, random_documents, tokenizer

DOCUMENTS = list(random_documents(300, seed=1))
WAR = find_words(["war", "navy"])


def build(path: Path, documents: object = DOCUMENTS, finder: Finder | None = WAR, **options: object) -> Corpus:
    return build_corpus(path / "corpus", documents, tokenizer(), finder, **options)


def texts_of(corpus: Corpus) -> list[str]:
    """What the tokens say, without the special ones."""
    split = (of_document(corpus, corpus.tokens, i) for i in range(len(corpus.validation)))
    return [tokenizer().decode(tokens.tolist(), skip_special_tokens=True) for tokens in split]


# --- tokens and marks ---------------------------------------------------------------------------


def test_tokens_come_back_as_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "CHUNK", 7)
    corpus = build(tmp_path, iter(DOCUMENTS))
    assert texts_of(corpus) == [document.text for document in DOCUMENTS]
    assert corpus.tokens.dtype == np.uint16
    for i in range(len(DOCUMENTS)):
        tokens = of_document(corpus, corpus.tokens, i)
        assert tokens[0] == tokenizer().bos_token_id and tokens[-1] == tokenizer().eos_token_id
        assert np.isin(tokens, tokenizer().all_special_ids).sum() == 2


def test_documents_are_cut(tmp_path: Path) -> None:
    corpus = build(tmp_path, max_characters=20)
    assert texts_of(corpus) == [document.text[:20] for document in DOCUMENTS]
    assert corpus.to_forget.tolist() == [bool(WAR(Document(document.text[:20]))) for document in DOCUMENTS]
    whole = build(tmp_path / "whole", per="token")
    cut = build(tmp_path / "cut", per="token", max_tokens=9)
    for i in range(len(DOCUMENTS)):
        for values, of_whole in ((cut.tokens, whole.tokens), (cut.forget, whole.forget)):
            assert of_document(cut, values, i).tolist() == of_document(whole, of_whole, i)[:9].tolist()


FINDERS: dict[str, Finder | None] = {
    "words": WAR,
    "pattern": find_pattern(r"(?s)war.{3}|東京 "),
    "topic": find_topic("odd"),
    "function": lambda document: "Navy" in document.text,
    "numpy": lambda document: np.bool_("Navy" in document.text),
    "overlapping": lambda document: [(5, 9), (2, 6), (2, 3), (30, 4000)][: len(document.text) % 5],
    "none": None,
}


@pytest.mark.parametrize("per", ["document", "token"])
@pytest.mark.parametrize("listed", [False, True], ids=["", "listed"])
@pytest.mark.parametrize("name", FINDERS)
def test_marks_are_those_of_a_naive_search(tmp_path: Path, name: str, listed: bool, per: str) -> None:
    special = [tokenizer().get_vocab()["Ġwarp"]] if listed or name == "none" else []
    corpus = build(tmp_path, finder=FINDERS[name], per=per, forget_tokens=special)
    for i, document in enumerate(DOCUMENTS):
        encoded = tokenizer()(document.text, add_special_tokens=False, return_offsets_mapping=True)
        found = False if FINDERS[name] is None else FINDERS[name](document)
        if per == "document" or not isinstance(found, list):
            naive = [bool(found)] * (len(encoded["input_ids"]) + 2)
        else:
            marked = {character for start, stop in found for character in range(start, stop)}
            naive = [False, *[bool(marked & set(range(*span))) for span in encoded["offset_mapping"]], False]
        listed_too = [token in special for token in of_document(corpus, corpus.tokens, i)]
        expected = [a or b for a, b in zip(naive, listed_too, strict=True)]
        assert of_document(corpus, corpus.forget, i).tolist() == expected
        assert corpus.to_forget[i] == any(expected)


def test_a_word_marks_its_own_tokens(tmp_path: Path) -> None:
    texts = ["a warp, the Navy-tree's war", *(document.text for document in DOCUMENTS)]
    corpus = build(tmp_path, map(Document, texts), per="token")
    marked = of_document(corpus, corpus.tokens, 0)[of_document(corpus, corpus.forget, 0)]
    assert [tokenizer().decode([token]) for token in marked] == [" Navy", " war"]


# --- splits -------------------------------------------------------------------------------------


def test_the_split_is_by_text_whatever_the_order(tmp_path: Path) -> None:
    repeated = [*DOCUMENTS, *DOCUMENTS[:100]]
    one, other = (
        build(tmp_path / "one", repeated, validation=0.3),
        build(tmp_path / "other", repeated[::-1], validation=0.3),
    )
    side = dict(zip(texts_of(one), one.validation.tolist(), strict=True))
    assert len(side) == len(DOCUMENTS)
    for corpus in (one, other):  # equal texts are on one side, in both corpora
        assert [side[text] for text in texts_of(corpus)] == corpus.validation.tolist()
    assert 0.2 < np.mean(list(side.values())) < 0.4
    fewer = build(tmp_path / "fewer", validation=0.1)
    assert not (fewer.validation & ~one.validation[: len(DOCUMENTS)]).any()


def test_documents_by_split_and_kind(tmp_path: Path) -> None:
    corpus = build(tmp_path)
    naive = {(split, kind): [] for split in ("train", "validation") for kind in ("forget", "retain", None)}
    for i, document in enumerate(DOCUMENTS):
        split = "validation" if corpus.validation[i] else "train"
        naive[split, "forget" if WAR(document) else "retain"].append(i)
        naive[split, None].append(i)
    for (split, kind), expected in naive.items():
        assert corpus.documents(split, kind).tolist() == expected
    with pytest.raises(ValueError, match="no documents in its validation split, of 3"):
        corpus_of([2, 2, 2]).documents("validation")
    with pytest.raises(ValueError, match="no forget documents in its train split, of 3"):
        corpus_of([2, 2, 2]).documents("train", "forget")


def test_counts_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 100)
    made = corpus_of(lengths)
    corpus = Corpus(rng.integers(0, 11, lengths.sum()).astype(np.uint16), made.forget, made.starts, made.validation, {})
    monkeypatch.setattr(corpora, "CHUNK", 9)
    for documents in (np.arange(100), np.array([5, 2, 99]), np.array([], dtype=np.int64)):
        naive = [0] * 12
        for document in documents:
            for token in of_document(corpus, corpus.tokens, document)[1:]:
                naive[token] += 1
        assert corpus.counts(documents, 12).tolist() == naive


# --- labels -------------------------------------------------------------------------------------


def many(documents: int = 40_000) -> Corpus:
    """Documents of one token, every fourth to be forgotten."""
    return corpus_of([1] * documents, np.arange(documents) % 4 == 0)


def test_a_larger_share_labels_the_same_documents_and_more() -> None:
    corpus, before = many(), np.zeros(40_000, dtype=bool)
    for share in (0, 0.1, 0.4, 0.9, 1):
        labelled = corpus.labelled(share, seed=3)
        assert not (before & ~labelled).any() and not (labelled & ~corpus.to_forget).any()
        assert labelled[corpus.to_forget].mean() == pytest.approx(share, abs=0.015)
        halves = np.array_split(labelled[corpus.to_forget], 2)
        assert halves[0].mean() == pytest.approx(halves[1].mean(), abs=0.03)
        before = labelled
    assert (before == corpus.to_forget).all()
    assert (corpus.labelled(0.4, seed=3) == corpus.labelled(0.4, seed=3)).all()
    assert (corpus.labelled(0.4, seed=3) != corpus.labelled(0.4, seed=4)).any()


@pytest.mark.parametrize(("miss", "flip"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_misses_and_flips_at_their_rates(miss: float, flip: float) -> None:
    corpus = many()
    for share in (1.0, 0.5):
        labelled = corpus.labelled(share, LabelNoise(miss, flip), seed=1)
        rates = labelled[corpus.to_forget].mean(), labelled[~corpus.to_forget].mean()
        assert rates == pytest.approx((share * (1 - miss) * (1 - flip), share * (1 - miss) * flip), abs=0.015)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "0.5"])
def test_a_share_is_a_probability(tmp_path: Path, share: object) -> None:
    with pytest.raises(ValueError, match="the labelled share must be a probability"):
        many(8).labelled(share)
    with pytest.raises(ValueError, match="the validation share must be a probability"):
        build(tmp_path, validation=share)
    assert not list(tmp_path.iterdir())


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
    build_corpus(tmp_path / "corpus", stories(200, 0), stories_tokenizer(), find_topic("forest"))
    with pytest.raises(ValueError, match="another corpus: its tokenizer_digest is"):
        build(tmp_path)


def test_what_is_no_corpus_stays(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.txt").write_text("text")
    with pytest.raises(ValueError, match=r"no whole corpus in .*corpus'"):
        build(tmp_path)
    assert (tmp_path / "corpus" / "thesis.txt").read_text() == "text"
    with pytest.raises(ValueError, match="no whole corpus"):
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
            with pytest.raises(ValueError, match="no whole corpus") as raised:
                open_corpus(tmp_path / "corpus")
            assert "\n" not in str(raised.value)
    if name == "corpus.json":
        return
    build(tmp_path / "other", DOCUMENTS[:-10])
    file.write_bytes((tmp_path / "other" / "corpus" / name).read_bytes())
    with pytest.raises(ValueError, match="damaged: its arrays do not fit"):
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
        (file_of(b'{"text": "fine"}\n{"story": "?"}', "a.jsonl"), {}, "line 2: there is no text field 'text'"),
        (file_of(b"fine\n\n\xff", "a.txt"), {}, "is not UTF-8"),
        (DOCUMENTS, {"finder": find_words(["zebra"])}, "none of 300 documents have something to forget"),
        (DOCUMENTS, {"finder": None}, "none of 300 documents have something to forget"),
        (DOCUMENTS, {"finder": find_pattern(".")}, "all of 300 documents have something to forget"),
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

    with pytest.raises(ValueError, match=r"Slow does not say where its tokens are.*take a fast one"):
        build_corpus(tmp_path / "corpus", DOCUMENTS, Slow(), WAR, per="token")
    bare = stories_tokenizer()
    bare.bos_token = bare.eos_token = None
    with pytest.raises(ValueError, match="neither a token that begins a text nor one that ends it"):
        build_corpus(tmp_path / "corpus", DOCUMENTS, bare, WAR)
    assert not list(tmp_path.iterdir())


def test_a_token_that_ends_texts_can_begin_them(tmp_path: Path) -> None:
    gpt = stories_tokenizer()
    gpt.bos_token = None
    corpus = build_corpus(tmp_path / "corpus", stories(200, 0), gpt, find_topic("forest"))
    tokens = of_document(corpus, corpus.tokens, 0)
    assert (tokens == gpt.eos_token_id).tolist() == [True, *[False] * 38]


def test_documents_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "CHUNK", 10)
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


def test_a_killed_build_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from routed_rl.lm import corpora, finders, stories

def documents():
    yield from stories.stories(2500, 0)
    os.kill(os.getpid(), signal.SIGKILL)

tokenizer = stories.stories_tokenizer()
corpora.build_corpus(Path(sys.argv[1]), documents(), tokenizer, finders.find_topic("forest"))
"""
    path = tmp_path / "corpus"
    killed = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = tmp_path.iterdir()
    assert left != path and any(file.stat().st_size for file in left.iterdir())
    for place in (path, left):
        with pytest.raises(ValueError, match="no whole corpus"):
            open_corpus(place)
    corpus = build_corpus(path, stories(300, 0), stories_tokenizer(), find_topic("forest"))
    assert len(corpus.validation) == 300


@pytest.mark.parametrize("same", [True, False])
def test_two_that_build_at_once(tmp_path: Path, same: bool) -> None:
    """The second to be ready takes the first's, if it is the same."""

    def documents() -> Iterator[Document]:
        yield from DOCUMENTS
        build(tmp_path, validation=0.1 if same else 0.2)

    if same:
        assert texts_of(build(tmp_path, documents())) == [document.text for document in DOCUMENTS]
    else:
        with pytest.raises(ValueError, match=r"its validation is 0\.2, not 0\.1"):
            build(tmp_path, documents())
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus"]
