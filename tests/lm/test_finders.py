"""Finders of forget data: words, patterns, topics, and lists of tokens."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from routed_rl.lm.documents import Document
from routed_rl.lm.finders import (
    VIROLOGY_TOKENS,
    WORD_LISTS,
    find_pattern,
    find_topic,
    find_words,
    read_words,
    score_tokens,
    single_tokens,
    top_tokens,
)
from routed_rl.lm.stories import stories_tokenizer
from routed_rl.lm.tokenizers import train_tokenizer
from tests.lm.texts import tokenizer


def found(finder: object, text: str) -> list[str]:
    return [text[start:end] for start, end in finder(Document(text))]


@given(st.lists(st.sampled_from(["ab", "b", "aab", "B", "ba_"]), min_size=1), st.text("aAbB_ .-é\n", max_size=30))
def test_words_are_found_as_by_looking_at_every_place(words: list[str], text: str) -> None:
    def inside(i: int) -> bool:
        return 0 <= i < len(text) and (text[i].isalnum() or text[i] == "_")

    wanted = {word.lower() for word in words}
    naive = [
        (start, end)
        for start in range(len(text))
        for end in range(start + 1, len(text) + 1)
        if text[start:end].lower() in wanted and not inside(start - 1) and not inside(end)
    ]
    assert list(find_words(words)(Document(text))) == naive


def test_words_with_other_signs_and_phrases() -> None:
    assert found(find_words(["C++", "c"]), "In C++, not C+ or c; Câ") == ["C++", "C", "c"]
    assert found(find_words(["war", "War on  poverty"]), "The war on\npoverty, the war on") == [
        "war on\npoverty",
        "war",
    ]
    assert found(find_words(["a.b"]), "aab a.b") == ["a.b"]
    assert found(find_words(WORD_LISTS["forest"]), "Forests: street, a tree's trees") == ["Forests", "tree", "trees"]


@pytest.mark.parametrize("words", [[], ["war", " "], [""]])
def test_word_lists_that_say_nothing(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"at least one word, and no empty ones, got \["):
        find_words(words)


def test_patterns_and_topics() -> None:
    assert found(find_pattern(r"\d*"), "a12b3") == ["12", "3"]
    assert find_topic("sea")(Document("x", "sea")) is True
    assert find_topic("sea")(Document("sea", "land")) is find_topic("sea")(Document("sea")) is False


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "*"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{pattern!r} is not a regular expression")) as raised:
        find_pattern(pattern)
    assert "\n" not in str(raised.value)


def test_a_file_of_words(tmp_path: Path) -> None:
    file = tmp_path / "words"
    file.write_bytes("\ufeffwar\r\n\n  cold war \nFöhn".encode())
    assert read_words(file) == ["war", "cold war", "Föhn"]
    file.write_text("\n \n")
    with pytest.raises(ValueError, match=r"words' is empty"):
        read_words(file)


# --- lists of tokens ----------------------------------------------------------------------------


def test_texts_of_one_token_each() -> None:
    trained = train_tokenizer(map(Document, VIROLOGY_TOKENS * 3), 500)
    ids = single_tokens(trained, VIROLOGY_TOKENS)
    assert len(set(ids)) == len(VIROLOGY_TOKENS) == 20
    assert [trained.decode([token]) for token in ids] == list(VIROLOGY_TOKENS)
    known = stories_tokenizer()
    assert single_tokens(known, ["tree", " near"]) == [known.get_vocab()["tree"], known.get_vocab()["near"]]


def test_texts_of_other_than_one_token_are_named() -> None:
    expected = "not one token each: 'q!' is 'q' + '!'; ' qz' is ' ' + 'q' + 'z'; '' is nothing"
    with pytest.raises(ValueError, match=re.escape(expected)):
        single_tokens(tokenizer(), ["a", "q!", " qz", ""])
    expected = r"not one token each: 'zebra' is '<eos>'; most words within a text begin with a space$"
    with pytest.raises(ValueError, match=expected):
        single_tokens(stories_tokenizer(), ["tree", "zebra"])


counts = st_numpy.arrays(np.int64, 6, elements=st.integers(0, 9)).filter(np.any)


@given(counts, counts, counts)
def test_scores_are_those_of_the_formula(forget: np.ndarray, related: np.ndarray, retain: np.ndarray) -> None:
    scores = score_tokens(forget, related, retain)
    for token in range(6):
        rest = retain[token] / retain.sum()
        peculiar = min(forget[token] / forget.sum(), related[token] / related.sum())
        assert scores[token] == pytest.approx(peculiar / rest if rest else 0)
    scored = sum(scores > 0)
    if scored:
        top = top_tokens(scores, scored)
        assert top == sorted(np.flatnonzero(scores).tolist(), key=lambda token: (-scores[token], token))
        assert top_tokens(scores, 1) == top[:1]
    for k in (0, scored + 1):
        with pytest.raises(ValueError, match=f"k must be within 1 … {scored}, .* got {k}"):
            top_tokens(scores, k)


def test_scores_need_texts_of_all_three_kinds() -> None:
    with pytest.raises(ValueError, match="the related counts are all zero"):
        score_tokens(np.ones(3), np.zeros(3), np.ones(3))
