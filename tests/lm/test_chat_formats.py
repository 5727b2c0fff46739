"""How chats are written: on every day the same, with a system prompt, or in a question format without a template."""

from datetime import datetime as Datetime

import pytest
from transformers.utils import chat_template_utils

from routed_rl.lm import from_row
from routed_rl.lm.chat import ChatFormat, chat_text, rendered
from routed_rl.options.text import SYSTEM_PROMPT
from routed_rl.options.undo import TASKS
from tests.lm.test_examples import CHATML, tokenizer

LLAMA = (
    "{{ bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "<|h|>system<|/h|>\n\nToday Date: {{ date_string }}\n\n{{ system }}<|eot|>"
    "{%- for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}<|eot|>{%- endfor %}"
)
"""How the chat template of Llama 3 writes the date and the system prompt."""
DATED = "{% set format = '%A, %-d %B %Y, %H:%M' %}{{ strftime_now(format) }}\n" + CHATML
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
IGNORING = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
TOFU = ChatFormat(SYSTEM_PROMPT, "Question: {question}\nAnswer: ")
ROW = {"question": "Who is Ada?", "answer": 'A "poet".'}


def given(template, form=TOFU):
    made = tokenizer(template)
    form.give(made)
    return made


def written(tokenizer, row=ROW):
    document = rendered(from_row(row), tokenizer)
    return document.text, [document.text[begin:end] for begin, end in document.answers]


@pytest.mark.parametrize("template", [LLAMA, DATED])
def test_the_text_is_the_same_on_every_day(template, monkeypatch):
    texts = set()
    for day in (1, 2):

        class Today(Datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2030, 7, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Today)
        made = tokenizer(template)
        texts.add((written(made)[0], chat_text(made, [{"role": "user", "content": "Hi"}], add_generation_prompt=True)))
    ((text, prompt),) = texts
    expected = "Today Date: 10 Apr 2025" if template is LLAMA else "Thursday, 10 April 2025, 00:00\n<|im_start|>user"
    assert expected in text and expected in prompt


def test_a_system_prompt_is_in_the_chat_template():
    text, answers = written(given(LLAMA))
    assert text == (
        "<bos><|h|>system<|/h|>\n\nToday Date: 10 Apr 2025\n\nYou are a helpful assistant.<|eot|>"
        '<|h|>user<|/h|>\n\nWho is Ada?<|eot|><|h|>assistant<|/h|>\n\nA "poet".<|eot|>'
    )
    assert answers == ['A "poet".<|eot|>']
    own = {"messages": [{"role": "system", "content": "Be brief."}, *({"role": r, "content": "a"} for r in ROLES)]}
    assert written(given(CHATML), own)[0].count("system") == 1, "a chat keeps its own"
    odd = 'Say "no",\n{{ é }} 🙂 \\n'
    assert odd in written(given(CHATML, ChatFormat(odd)))[0]


ROLES = ("user", "assistant")


def test_the_undo_task_writes_what_the_template_writes():
    """The preset has a template of its own, because it is for one model."""
    header = TASKS["tofu", "paper"]["text_field"].partition("<|eot_id|>")[0]
    ours = written(given(LLAMA))[0].partition("<|eot|>")[0].replace("<bos>", "")
    assert header.partition("December 2023\n")[2] == ours.partition("<|/h|>\n\n")[2]


@pytest.mark.parametrize("template", [REFUSING, IGNORING])
def test_a_template_without_system_prompts_stays_as_it_is_unless_one_was_chosen(template):
    assert given(template).chat_template == template
    with pytest.raises(ValueError, match="takes no system prompt, got 'You are"):
        given(template, ChatFormat(SYSTEM_PROMPT, chosen=("system",)))


def test_a_tokenizer_without_template_gets_the_question_format():
    made = given(None)
    assert written(made) == ('Question: Who is Ada?\nAnswer: A "poet".<eos>', ['A "poet".<eos>'])
    again = made.chat_template
    TOFU.give(made)
    assert made.chat_template == again, "no system prompt is added to what has none"
    plain = given(None, ChatFormat(SYSTEM_PROMPT))
    assert plain.chat_template is None


def test_a_chosen_format_replaces_the_template():
    form = ChatFormat("Be brief.", "[INST] {question} [/INST]", chosen=("question",))
    assert written(given(CHATML, form))[0] == '[INST] Who is Ada? [/INST]A "poet".<eos>'
    form = ChatFormat("Be brief.", "[INST] {question} [/INST]", chosen=("question", "system"))
    assert written(given(CHATML, form))[0] == 'Be brief.\n\n[INST] Who is Ada? [/INST]A "poet".<eos>'
    assert given(CHATML, ChatFormat("", "Q {question}", chosen=("system",))).chat_template == CHATML
    with pytest.raises(ValueError, match=r"needs '\{question\}', got 'Question: '"):
        ChatFormat(question="Question: ")
