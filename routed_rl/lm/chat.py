"""Chats: messages become the text that a tokenizer's chat template makes of them, with their answers marked.

The text is the same on every day: templates that write today's date see :data:`~routed_rl.options.text.DATE`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from routed_rl.lm.documents import Document
from routed_rl.options.text import DATE

BEGIN, END = "\ue000", "\ue001"
"""Characters that mark an answer while a template is filled. They are of Unicode's private use area."""
CLOCK = "strftime_now"
"""The function with which chat templates ask for today's date."""
DIRECTIVES = tuple(f"%{letter}" for letter in (*"aAbBcdefHIjmMpSUwWxXyY", "-d", "-m", "-H", "-I"))
"""What a template may ask for."""
QUESTION = "{question}"
"""In a question format: where the question is."""


@dataclass(frozen=True)
class ChatFormat:
    """How chats are written for a model.

    Attributes:
        system: the system prompt of each chat that has none. Blank: there is none.
        question: what a question looks like, with ``"{question}"`` in it, for tokenizers without a chat template. The
            answer follows. Blank: the question and a space.
        chosen: those of these two that somebody chose. A chosen ``question`` also replaces a chat template. A system
            prompt that nobody chose is left out where there is no chat template, or where it refuses one.

    Raises:
        ValueError: for a question format without ``"{question}"``.
    """

    system: str = ""
    question: str = ""
    chosen: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.question and QUESTION not in self.question:
            raise ValueError(f"a question format needs {QUESTION!r}, got {self.question!r}")

    def give(self, tokenizer: Any) -> None:
        """Give a tokenizer the chat template of this format. It is saved with the tokenizer.

        Raises:
            ValueError: for a chat template that refuses a chosen system prompt.
        """
        own = _of_questions(self.question) if self.question else None
        if own is not None and ("question" in self.chosen or not tokenizer.chat_template):
            tokenizer.chat_template = own
        chosen = "system" in self.chosen
        if not self.system or not tokenizer.chat_template or (tokenizer.chat_template == own and not chosen):
            return
        prompt = f"[{{'role': 'system', 'content': {_literal(self.system)}}}]"
        first = (
            f"{{%- if messages[0]['role'] != 'system' %}}{{%- set messages = {prompt} + messages %}}{{%- endif %}}\n"
        )
        template = first + tokenizer.get_chat_template()
        try:
            taken = self.system in tokenizer.apply_chat_template(
                [{"role": "user", "content": "?"}], chat_template=template, tokenize=False
            )
        except Exception:  # templates raise errors of their own
            taken = False
        if taken:
            tokenizer.chat_template = template
        elif chosen:
            raise ValueError(f"the chat template takes no system prompt, got {self.system!r}")


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    """Return the text that a tokenizer's chat template makes of messages, the same on every day.

    Args:
        options: of ``apply_chat_template`` of transformers.
    """
    template = tokenizer.get_chat_template()
    if CLOCK in template:
        # A function cannot be passed to a template, so the date is written by a macro that takes the function's name.
        days = "".join(f" | replace({_literal(of)}, {_literal(DATE.strftime(of))})" for of in DIRECTIVES)
        template = f"{{%- macro {CLOCK}(format) %}}{{{{ format{days} }}}}{{%- endmacro %}}\n{template}"
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))


def _literal(text: str) -> str:
    """Return a text as a template has it in its code."""
    return json.dumps(text, ensure_ascii=False)


def _of_questions(question: str) -> str:
    """Return the chat template of a question format. An answer ends with the end token."""
    before, _, after = question.partition(QUESTION)
    return (
        "{%- for message in messages %}{%- if message['role'] == 'user' %}"
        f"{{{{ {_literal(before)} + message['content'] + {_literal(after)} }}}}"
        "{%- elif message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}"
        "{%- else %}{{ message['content'] + '\n\n' }}{%- endif %}{%- endfor %}"
    )


def rendered(document: Document, tokenizer: Any) -> Document:
    """Return a document whose text is its messages in the tokenizer's chat template, and whose answers are marked.

    An answer reaches to the special token after it, with which the model says that it has ended. White space around a
    message is left out. Documents without messages are returned as they are. So are questions and answers, if the
    tokenizer has no chat template.

    Raises:
        ValueError: if messages need a chat template and there is none, or it does not keep the answers as they are.
    """
    if document.messages is None:
        return document
    if not tokenizer.chat_template:
        if document.answers is None:
            raise ValueError("a document has chat messages, and the tokenizer has no chat template to write them with")
        return replace(document, messages=None)
    contents = [(role, content.strip(), is_answer) for role, content, is_answer in document.messages]
    marked = [
        {"role": role, "content": f"{BEGIN}{content}{END}" if is_answer else content}
        for role, content, is_answer in contents
    ]
    plain = [{"role": role, "content": content} for role, content, _ in contents]
    try:
        parts = re.split(f"[{BEGIN}{END}]", chat_text(tokenizer, marked))
        text = chat_text(tokenizer, plain)
    except Exception as error:  # templates raise errors of their own, for example for two messages of one role
        raise ValueError(f"the chat template refuses a document's messages: {error}") from None
    if parts[1::2] != [content for _, content, is_answer in contents if is_answer] or "".join(parts) != text:
        raise ValueError(f"the chat template changes an answer, so its place is not known: {text[:80]!r}")
    special = sorted((re.escape(token.content) for token in tokenizer.added_tokens_decoder.values()), key=len)
    ending = re.compile(rf"\s*(?:{'|'.join(reversed(special))})") if special else re.compile("")
    answers, begin = [], 0
    for i, part in enumerate(parts):
        end = begin + len(part)
        if i % 2:
            found = ending.match(text, end)
            answers.append((begin, found.end() if found else end))
        begin = end
    return replace(document, text=text, answers=tuple(answers))
