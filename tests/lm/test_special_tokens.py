"""Each document begins with BOS and ends with EOS, where the tokenizer has them, and EOS is scored."""

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from routed_rl.lm import Document, build_corpus, encode_prompt, find_topic, text_corpus
from routed_rl.lm.batches import Batches
from routed_rl.lm.completions import Prompt
from routed_rl.lm.tokenizers import first_token
from tests.lm.texts import of_document

VOCABULARY = {"<bos>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4}
TEMPLATE = "{% for m in messages %}<bos>{{ m['content'] }}<eos>{% endfor %}"


def tokenizer(adds=False, **special):
    """Return a tokenizer of three words. ``adds``: it writes BOS before each text itself."""
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="c"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds:
        made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


BOTH = {"bos_token": "<bos>", "eos_token": "<eos>"}
CASES = {
    "both": (tokenizer(**BOTH), [0, 2, 3, 1]),
    "both, and it writes BOS": (tokenizer(adds=True, **BOTH), [0, 2, 3, 1]),
    "EOS alone": (tokenizer(eos_token="<eos>"), [2, 3, 1]),
    "BOS alone": (tokenizer(bos_token="<bos>"), [0, 2, 3]),
    "neither": (tokenizer(), [2, 3]),
    "one token for both, as GPT-2": (tokenizer(bos_token="<eos>", eos_token="<eos>"), [2, 3, 1]),
    "one token for both, written, as OPT": (tokenizer(True, bos_token="<bos>", eos_token="<bos>"), [0, 2, 3, 0]),
    "BOS of messages, as SmolLM2": (tokenizer(chat_template=TEMPLATE, **BOTH), [2, 3, 1]),
    "BOS switched off, as Phi-3": (tokenizer(add_bos_token=False, **BOTH), [2, 3, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_documents_begin_and_end(name):
    of, expected = CASES[name]
    corpus = text_corpus(of, ["a b"], ["a b c", "<bos> a"])
    assert of_document(corpus, corpus.tokens, 0).tolist() == expected
    marked = of_document(corpus, corpus.forget, 0)
    assert marked.tolist() == [token in (2, 3) for token in expected], "a model should not forget how to stop"
    batch = Batches(corpus, corpus.documents("train", "forget"), 8, 1).batch(0)
    assert batch.targets[batch.scored].tolist() == expected[1:], "EOS is scored"
    begins = [] if first_token(of) is None else [first_token(of)]
    assert encode_prompt(of, Prompt("a b", "c")) == [*begins, 2, 3]


def test_a_text_that_begins_with_bos_does_not_get_another():
    of, _ = CASES["both"]
    corpus = text_corpus(of, ["a b"], ["<bos> a"])
    assert of_document(corpus, corpus.tokens, 1).tolist() == [0, 2, 1]


def test_special_tokens_are_no_forget_tokens_wherever_they_come_from():
    """Of a template that was filled before, and of a chat template whose tokens are only added ones."""
    of, _ = CASES["both"]
    corpus = text_corpus(of, ["<bos> a <eos>"], ["b"])
    assert of_document(corpus, corpus.tokens, 0).tolist() == [0, 2, 1], "it has its EOS already"
    assert of_document(corpus, corpus.forget, 0).tolist() == [False, True, False]
    chat = tokenizer(chat_template="{% for m in messages %}{{ m['content'] }} <end>{% endfor %}", **BOTH)
    chat.add_tokens([AddedToken("<end>", special=True)])
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    corpus = text_corpus(chat, [row], ["c"])
    end = chat.convert_tokens_to_ids("<end>")
    assert end not in chat.all_special_ids
    assert of_document(corpus, corpus.tokens, 0).tolist() == [0, 2, end, 3, end]
    assert of_document(corpus, corpus.forget, 0).tolist() == [False, True, False, True, False]
    assert of_document(corpus, corpus.scored, 0).tolist() == [False, False, False, True, True]


def test_a_text_that_is_cut_has_no_end(tmp_path):
    of, _ = CASES["both"]
    documents = [Document("a b c", "t"), Document("a b", "t"), Document("b")]
    corpus = build_corpus(tmp_path / "c", documents, of, find_topic("t"), validation=None, max_characters=3)
    assert of_document(corpus, corpus.tokens, 0).tolist() == [0, 2, 3]
    assert of_document(corpus, corpus.tokens, 1).tolist() == [0, 2, 3, 1]


def test_a_set_without_a_token_that_counts_is_refused(tmp_path):
    of, _ = CASES["both"]
    documents = [Document("a b c", "t", answers=((4, 5),)), Document("b c")]
    with pytest.raises(ValueError, match="no token of the forget documents in the train split counts in a loss"):
        build_corpus(tmp_path / "c", documents, of, find_topic("t"), validation=None, max_tokens=3)


@pytest.mark.parametrize("unknown", ["<eos>", "<bos>"])
def test_an_unknown_word_is_no_end_and_no_begin(unknown):
    """Some tokenizers write EOS or BOS for a word that they do not know."""
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    of, number = PreTrainedTokenizerFast(tokenizer_object=made, **BOTH), VOCABULARY[unknown]
    corpus = text_corpus(of, ["? a ?"], ["b"])
    assert of_document(corpus, corpus.tokens, 0).tolist() == [0, number, 2, number, 1]
    assert of_document(corpus, corpus.forget, 0).tolist() == [False, True, True, True, False]
