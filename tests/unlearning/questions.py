"""Texts as questions with answers, for the methods that teach another answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from routed_rl.unlearning import SUPPRESSORS

PAIRED = tuple(name for name, kind in SUPPRESSORS.items() if kind().alternatives is not None)
"""Methods whose batches have alternative answers."""
ASKED, ANSWERED = 3, 6
"""Words of a question and of an answer."""


def as_questions(texts: Sequence[str]) -> list[dict[str, str]]:
    """Return the first words of each text as a question, and the next ones as its answer."""
    words = [text.split()[: ASKED + ANSWERED] for text in texts]
    return [{"question": " ".join(of[:ASKED]), "answer": " ".join(of[ASKED:])} for of in words]


def for_method(method: str, forget: Sequence[str], retain: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return both sets in the form that a method needs, and its options: each question gets another one's answer."""
    if method not in PAIRED:
        return [forget, retain], {}
    rows: list[Mapping[str, str]] = [*as_questions(forget)]
    answers = [row["answer"] for row in rows]
    return [rows, as_questions(retain)], {"alternatives": answers[1:] + answers[:1]}
