"""Questions and answers, prompts and completions, chats: which tokens count, and what a chat template makes of them."""

import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from routed_rl.lm import Document, build_corpus, find_topic, from_row, read_documents, text_corpus
from routed_rl.lm.chat import rendered
from routed_rl.lm.documents import as_row
from tests.lm.texts import of_document

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
SPACED = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + ' <eos>' }}{% endfor %}"
SPECIALS = ("<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|h|>", "<|/h|>", "<|eot|>")


def tokenizer(template=None, **special):
    """Return a tokenizer of bytes, with special tokens and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIALS))
    special = {"bos_token": "<bos>", "eos_token": "<eos>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **special)


def split(of, corpus, document=0):
    """Return a document's text with all tokens, and the text of its scored tokens."""
    tokens = of_document(corpus, corpus.tokens, document).astype(np.int64)
    scored = np.ones(len(tokens), bool) if corpus.scored is None else of_document(corpus, corpus.scored, document)
    # Text beyond ASCII is one token per byte here, so only ASCII is compared.
    return [of.decode(part.tolist()) for part in (tokens, tokens[scored])]


QUESTION = {"question": "Who?", "answer": "Me."}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " a "},
        {"role": "user", "content": "Again?"},
        {"role": "assistant", "content": "No."},
    ]
}


@pytest.mark.parametrize(
    ("row", "text", "scored"),
    [
        ({"text": "All."}, "<bos>All.<eos>", "<bos>All.<eos>"),
        (QUESTION, "<bos>Who? Me.<eos>", "Me.<eos>"),
        ({"prompt": "1+1=", "completion": "2"}, "<bos>1+1=2<eos>", "2<eos>"),
        ({"prompt": "", "completion": "2"}, "<bos>2<eos>", "2<eos>"),
    ],
)
def test_without_a_chat_template(row, text, scored):
    of = tokenizer()
    for given_as in ([row], Dataset.from_list([row])):
        corpus = text_corpus(of, given_as, ["other"])
        assert split(of, corpus) == [text, scored]
        assert split(of, corpus, 1) == ["<bos>other<eos>"] * 2


@pytest.mark.parametrize(
    ("template", "end", "text", "scored"),
    [
        (
            CHATML,
            "<|im_end|>",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
            "a<|im_end|>\n"
            "<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n",
            "a<|im_end|>No.<|im_end|>",
        ),
        (
            LLAMA,
            "<|eot|>",
            "<bos><|h|>system<|/h|>\n\nBe brief.<|eot|><|h|>user<|/h|>\n\na<|eot|><|h|>assistant<|/h|>\n\na<|eot|>"
            "<|h|>user<|/h|>\n\nAgain?<|eot|><|h|>assistant<|/h|>\n\nNo.<|eot|>",
            "a<|eot|>No.<|eot|>",
        ),
        (
            THINKING,
            "<|im_end|>",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
            "a<|im_end|>\n"
            "<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nNo.<|im_end|>\n",
            "a<|im_end|>No.<|im_end|>",
        ),
        (
            SPACED,
            "<eos>",
            "[system] Be brief. <eos>[user] a <eos>[assistant] a <eos>[user] Again? <eos>[assistant] No. <eos>",
            "a <eos>No. <eos>",
        ),
    ],
)
def test_a_chat_template_writes_the_special_tokens(template, end, text, scored):
    """Nothing is added, and answers are scored up to the token that ends them."""
    of = tokenizer(template, eos_token=end, **({} if "bos" in template else {"bos_token": None}))
    corpus = text_corpus(of, [CHAT], ["other"])
    assert split(of, corpus) == [text, scored]


def test_a_question_is_a_chat_where_there_is_a_template():
    of = tokenizer(LLAMA, eos_token="<|eot|>")
    corpus = text_corpus(of, [QUESTION], ["other"])
    assert split(of, corpus) == [
        "<bos><|h|>user<|/h|>\n\nWho?<|eot|><|h|>assistant<|/h|>\n\nMe.<|eot|>",
        "Me.<|eot|>",
    ]
    assert split(of, corpus, 1)[0] == "<bos>other<|eot|>"


def test_only_the_completion_of_a_conversation_counts():
    of = tokenizer(CHATML, bos_token=None, eos_token="<|im_end|>")
    row = {"prompt": CHAT["messages"][:4], "completion": CHAT["messages"][4:]}
    assert split(of, text_corpus(of, [row], ["other"]))[1] == "No.<|im_end|>"


def test_all_tokens_count_if_they_are_to(tmp_path):
    of, documents = tokenizer(), [from_row({**QUESTION, "topic": "t"}), Document("other")]
    corpus = build_corpus(tmp_path / "c", documents, of, find_topic("t"), validation=None, score="all")
    assert corpus.scored is None and split(of, corpus)[0] == "<bos>Who? Me.<eos>"


def test_answers_in_a_template_of_fields(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({**QUESTION, "n": 3}))
    (document,) = read_documents(str(file), field="Q{n}: {question} A: {answer}!")
    assert document.text == "Q3: Who? A: Me.!" and document.answers == ((12, 15),)
    (plain,) = read_documents(str(file), field="{question} {n}")
    assert plain == Document("Who? 3"), "without an answer the whole text counts"


@pytest.mark.parametrize(
    ("row", "template", "message"),
    [
        (CHAT, None, "the tokenizer has no chat template"),
        (CHAT, "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "changes an answer"),
        (CHAT, "{{ messages[0]['content'] }}", "changes an answer"),
        (CHAT, "{{ raise_exception('roles must alternate') }}", "refuses a document's messages: roles must alternate"),
        ({"messages": [{"role": "user", "content": "Hello"}]}, CHATML, "a row needs"),
        ({"messages": [{"role": "assistant", "content": None}]}, CHATML, "a row needs"),
        ({"question": "Who?"}, CHATML, r"this one has 'question' \(str\)"),
        ({"prompt": "Who?", "completion": ["Me."]}, CHATML, r"'completion' \(list\)"),
    ],
)
def test_rows_that_cannot_be_read_are_refused_in_a_line(row, template, message):
    with pytest.raises(ValueError, match=message) as raised:
        text_corpus(tokenizer(template), [row], ["other"])
    assert "\n" not in str(raised.value)


CONTENT = st.text(st.characters(codec="utf-8", exclude_categories=("Co", "Cs")), min_size=1, max_size=12)
MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), CONTENT), min_size=1, max_size=5)


@given(st.text(max_size=9), CONTENT)
def test_a_row_can_be_written_and_read_again(first, second):
    rows = ({"text": second}, {"question": first, "answer": second}, {"prompt": first, "completion": second})
    for row in rows:
        document = from_row(row)
        assert as_row(document) == row and from_row(json.loads(json.dumps(as_row(document)))) == document


@given(MESSAGES)
def test_chats_can_be_written_and_read_again_and_keep_their_answers(messages):
    row = {"messages": [{"role": role, "content": content} for role, content in (*messages, ("assistant", "end"))]}
    document = from_row(row)
    assert from_row(as_row(document)) == document
    found = rendered(document, tokenizer(CHATML, bos_token=None, eos_token="<|im_end|>"))
    answers = [content.strip() + "<|im_end|>" for role, content, is_answer in document.messages if is_answer]
    assert [found.text[begin:end] for begin, end in found.answers] == answers


def test_texts_in_both_sets_are_refused(tmp_path):
    """Compared as a reader sees them. How many there are is counted, and said of a corpus on disk each time."""
    of = tokenizer()
    forget, retain = ["caf\u00e9  au lait", "one", "two"], ["cafe\u0301 au lait ", "two", "three"]
    with pytest.raises(ValueError, match=r"2 texts are in the forget set and in the retain set, .* 'caf.* au lait'"):
        text_corpus(of, forget, retain)
    assert text_corpus(of, forget, retain, allow_overlap=True).overlap == 2
    assert text_corpus(of, forget[1:2], retain[2:]).overlap == 0
