"""Tokenizers trained on given text, and digests of tokenizers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.lm.documents import Document
from routed_rl.lm.stories import stories_tokenizer
from routed_rl.lm.tokenizers import BOS, EOS, tokenizer_digest, train_tokenizer
from tests.lm.texts import random_documents, tokenizer


@given(st.text())
def test_every_text_can_be_had_back(text: str) -> None:
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert tokenizer().decode(ids) == text


def test_a_tokenizer_is_a_function_of_the_documents() -> None:
    trained = train_tokenizer(random_documents(200, seed=0), 320)
    assert trained.backend_tokenizer.to_str() == tokenizer().backend_tokenizer.to_str()
    assert len(trained) == 320 and trained.bos_token_id != trained.eos_token_id
    assert trained.convert_ids_to_tokens([trained.bos_token_id, trained.eos_token_id]) == [BOS, EOS]
    assert "Ġwarp" in trained.get_vocab()
    assert len(train_tokenizer([Document("ab")], 320)) == 259  # all bytes, two special ones, and the only pair


def test_what_no_tokenizer_can_be_trained_on() -> None:
    with pytest.raises(ValueError, match=r"needs 258 tokens.*got 257"):
        train_tokenizer([Document("ab")], 257)
    with pytest.raises(ValueError, match="needs documents"):
        train_tokenizer(iter([]), 300)


def test_a_digest_is_of_what_a_tokenizer_does() -> None:
    trained = train_tokenizer([Document("ab")], 320)
    before = tokenizer_digest(trained)
    trained(["a", "bcd"], truncation=True, max_length=2)
    assert tokenizer_digest(trained) == before == tokenizer_digest(train_tokenizer([Document("ab")], 320))
    trained.bos_token = EOS
    assert (
        len({before, tokenizer_digest(trained), tokenizer_digest(tokenizer()), tokenizer_digest(stories_tokenizer())})
        == 4
    )
    trained.chat_template = "{{ messages[0]['content'] }}"
    with_template = tokenizer_digest(trained)
    trained.chat_template = "{{ messages[-1]['content'] }}"
    assert len({before, with_template, tokenizer_digest(trained)}) == 3
