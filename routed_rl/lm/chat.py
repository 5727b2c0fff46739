"""Chats: messages become the text that a tokenizer's chat template makes of them, with their answers marked."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from routed_rl.lm.documents import Document

BEGIN, END = "\ue000", "\ue001"
"""Characters that mark an answer while a template is filled. They are of Unicode's private use area."""


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
        parts = re.split(f"[{BEGIN}{END}]", tokenizer.apply_chat_template(marked, tokenize=False))
        text = tokenizer.apply_chat_template(plain, tokenize=False)
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
