"""Texts are compared as a reader sees them, whichever way their accents are encoded, and in any script."""

from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from routed_rl.experiments.language.corpus import show
from routed_rl.lm import (
    Document,
    Finder,
    Prompt,
    build_corpus,
    completion_accuracy,
    find_pattern,
    find_topic,
    find_words,
    preview,
    split_by_words,
    text_corpus,
    train_tokenizer,
)
from routed_rl.lm.finders import single_tokens
from routed_rl.lm.unicode import composed, original_spans
from tests.lm.test_completions import Parrot, tokenizer_of
from tests.lm.test_examples import CHATML
from tests.lm.test_examples import tokenizer as chat_tokenizer
from tests.lm.texts import of_document, random_documents, tokenizer

FORMS = ("NFC", "NFD")
PIECES = ["a", "e", "q", "ķ", "́", "̣", "̈", "̈́", "é", "ệ", "Å", "Å", "ᄒ", "ᅡ", "ᆫ", "가", "ে", "া", "ཱི", "か", "゙", "病"]


@given(st.lists(st.sampled_from([*PIECES, " "]), max_size=12).map("".join))
def test_places_in_the_composed_text_are_found_in_the_text(text: str) -> None:
    """The parts that hold one composed character after the other are the whole text, and each composes to its own."""
    whole = composed(text)
    parts = list(dict.fromkeys(original_spans(text, [(i, i + 1) for i in range(len(whole))])))
    assert "".join(text[begin:end] for begin, end in parts) == text
    assert "".join(composed(text[begin:end]) for begin, end in parts) == whole
    for begin in range(len(whole)):
        ((a, b),) = original_spans(text, [(begin, len(whole))])
        assert b == len(text) and composed(text[a:]).endswith(whole[begin:])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", FORMS)
@pytest.mark.parametrize("finder", [find_words, lambda words: find_pattern(words[0])], ids=["words", "pattern"])
@pytest.mark.parametrize("word", ["café", "Ångström", "한국어", "ệ"])
def test_a_word_is_found_however_its_accents_are_encoded(
    word: str, finder: Callable[[list[str]], Finder], asked: str, form: str
) -> None:
    text = normalize(form, f"é {word}, é")
    ((begin, end),) = finder([normalize(asked, word)])(Document(text))
    assert text[begin:end] == normalize(form, word)
    assert split_by_words([text], [normalize(asked, word)]) == ([text], [])


def test_a_part_of_a_letter_is_no_word() -> None:
    for word, text in (("cafe", "a cafe\u0301"), ("cafe", "a caf\u00e9"), ("हिन", "हिन्दी"), ("q", "q\u0301")):
        assert not find_words([word])(Document(text)), word


def test_tokens_of_a_match_are_those_of_the_text_as_it_is(tmp_path: Path) -> None:
    text = normalize("NFD", "é é café é")
    documents = [Document(text), Document("peace")]
    corpus = build_corpus(tmp_path / "c", documents, tokenizer(), find_words(["café"]), per="token", validation=None)
    tokens, marks = (of_document(corpus, of, 0) for of in (corpus.tokens, corpus.forget))
    assert tokenizer().decode(tokens[marks]).strip() == normalize("NFD", "café")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("病毒", "新型冠状病毒感染"),
        ("ウイルス", "新型ウイルスの"),
        ("センター", "センターの"),
        ("人々", "村の人々は"),
        ("ไวรัส", "มีไวรัสใหม่"),
        ("ວຽງ", "ທີ່ວຽງຈັນ"),
        ("ភាសា", "រៀនភាសាខ្មែរ"),
        ("病毒", "RNA病毒x"),
        ("COVID", "我有COVID病毒"),
        ("新冠 病毒", "这是新冠 病毒啊"),
    ],
)
def test_words_in_scripts_without_spaces_are_found(word: str, text: str) -> None:
    assert [text[begin:end] for begin, end in find_words(["other", word])(Document(text))] == [word]


@pytest.mark.parametrize("text", ["COVIDs", "xCOVID", "COVID2", "COVID_", "COVIDに似COVIDx", "病COVIDx", "COVID²"])
def test_words_beside_letters_of_their_own_script_are_parts_of_others(text: str) -> None:
    assert len(find_words(["COVID"])(Document(text))) == text.startswith("COVIDに")


def test_twins_are_held_out_together(tmp_path: Path) -> None:
    documents = [Document(f"café {document.text}", document.topic) for document in random_documents(60, seed=3)]
    held_out = []
    for form in FORMS:
        twins = [Document(normalize(form, document.text), document.topic) for document in documents]
        corpus = build_corpus(tmp_path / form, twins, tokenizer(), find_topic("odd"), validation=0.5)
        held_out.append(corpus.validation.tolist())
    assert held_out[0] == held_out[1] and 10 < np.sum(held_out[0]) < 50


def test_answers_topics_tokens_and_matches_are_compared_so_too(tmp_path: Path) -> None:
    of = tokenizer_of("abcé \u0301ef")
    model = Parrot(of, {4: " caf\u00e9"})
    assert completion_accuracy(model, of, [Prompt("abc", "cafe\u0301")], new_tokens=6) == 1
    assert find_topic("cafe\u0301")(Document("x", "caf\u00e9")) is True
    composing = train_tokenizer([Document("café")] * 9, 400)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    assert single_tokens(composing, ["cafe\u0301"]) == single_tokens(composing, ["café"])
    documents, find = [Document("a café"), Document("a cafe\u0301"), Document("b")], find_words(["café"])
    corpus = build_corpus(tmp_path / "c", documents, tokenizer(), find, validation=None)
    assert preview(corpus, tokenizer(), find).matches == {"café": 2}


# --- what is counted and said of texts -----------------------------------------------------------


def test_special_tokens_that_a_text_writes_are_counted_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = tokenizer()
    documents = [Document("a<eos>b <eos> <bos>"), Document("c"), Document("<EOS> < eos>")]
    build = lambda: build_corpus(tmp_path / "c", documents, of, find_pattern("a"), validation=None)  # noqa: E731
    with pytest.warns(UserWarning, match="special tokens .* become control tokens: '<bos>' 1, '<eos>' 2$"):
        corpus = build()
    found = preview(corpus, of)
    assert corpus.special == build().special == found.special == {"<eos>": 2, "<bos>": 1}
    show(found)
    assert "control tokens in the corpus: '<bos>' 1, '<eos>' 2" in capsys.readouterr().out
    assert np.isin(corpus.tokens, of.all_special_ids).sum() == 3 + 2 * len(documents)


def test_special_tokens_of_a_chat_template_are_not_the_text_s(recwarn: pytest.WarningsRecorder) -> None:
    of = chat_tokenizer(CHATML, bos_token=None, eos_token="<|im_end|>")
    of.add_tokens([AddedToken("<|im_end|>", special=True)])
    rows = [{"question": "who?", "answer": answer} for answer in ("me", "you<|im_end|>")]
    assert text_corpus(of, rows[:1], ["a"]).special == {} and not recwarn.list
    assert text_corpus(of, rows[1:], ["a"]).special == {"<|im_end|>": 1} and len(recwarn.list) == 1


def test_texts_in_both_sets_that_are_accepted_are_counted_and_said() -> None:
    with pytest.warns(UserWarning, match=r"^1 text is in the forget set and in the retain set, for example 'café'$"):
        assert text_corpus(tokenizer(), ["café", "a"], ["cafe\u0301"], allow_overlap=True).overlap == 1
