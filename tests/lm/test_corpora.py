"""Corpora: tokens, marks, splits and labels. (As directories: test_corpora_on_disk.)"""

from pathlib import Path

import numpy as np
import pytest

from routed_rl.lm import corpora, tokenising
from routed_rl.lm.corpora import Corpus
from routed_rl.lm.documents import Document
from routed_rl.lm.finders import Finder, find_pattern, find_topic
from routed_rl.routing import LabelNoise
from tests.lm.texts import DOCUMENTS, WAR, build, corpus_of, of_document, texts_of, tokenizer

# --- tokens and marks ---------------------------------------------------------------------------


def test_tokens_come_back_as_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "CHUNK", 7)
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
            naive = [False, *[bool(found)] * len(encoded["input_ids"]), False]
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
    with pytest.raises(ValueError, match=r"validation split, of 3 .*another validation share; in a .txt"):
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
    """Return documents of one token. Every fourth one is a forget document."""
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
