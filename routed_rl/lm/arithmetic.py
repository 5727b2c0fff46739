"""Facts of arithmetic, written digit by digit: UNDO's arithmetic setting in small.

A model learns them in a minute, and can forget multiplication and division.

A fact has ten characters: ``"012*07=480"`` says that 12 times 7 is 84. The last digit of the answer comes first, so
that a model can compute the answer from left to right.

``B`` rows, ``T`` tokens a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerFast

from routed_rl.lm.batches import WholeDocuments
from routed_rl.lm.documents import Document
from routed_rl.lm.losses import measured
from routed_rl.lm.tokenizers import character_tokenizer

TOPICS = {"+": "addition", "-": "addition", "*": "multiplication", "/": "multiplication"}
SYMBOLS = "0123456789+-*/="
ANSWER = 3
"""Digits of an answer."""


def generate_arithmetic() -> Iterator[Document]:
    """Yield every fact once, with operands as in UNDO's arithmetic.

    The topic ``"addition"`` has the sums of numbers up to 50 (2,500) and their differences, if not negative (1,275).
    The topic ``"multiplication"`` has the products of numbers up to 20 (400) and the inverse divisions (400).
    """
    for a in range(1, 51):
        for b in range(1, 51):
            yield _fact(a, "+", b, a + b)
            if b <= a:
                yield _fact(a, "-", b, a - b)
    for a in range(1, 21):
        for b in range(1, 21):
            yield _fact(a, "*", b, a * b)
            yield _fact(a * b, "/", b, a)


def _fact(a: int, operation: str, b: int, answer: int) -> Document:
    text = f"{a:03d}{operation}{b:02d}={answer:0{ANSWER}d}"
    return Document(text[:-ANSWER] + text[: -ANSWER - 1 : -1], TOPICS[operation])


def exact_match(model: nn.Module, documents: WholeDocuments, answer: int = ANSWER) -> float:
    """Return the share of documents in which a model predicts all of the last tokens rightly (UNDO's accuracy).

    Each of these tokens must be the most likely one after the tokens before it. Greedy decoding would then
    write exactly these tokens.

    Args:
        documents: no longer than the model's positions.
        answer: how many of the last scored tokens count, at most.
    """
    right: list[np.ndarray] = []
    with measured(model, documents) as batches:
        for batch, _ in batches:
            likeliest = model(**batch.inputs).logits[:, :-1].argmax(dim=-1)
            to_come = batch.scored.flip(1).cumsum(dim=1).flip(1)  # how many scored targets there are from here on
            counts = batch.scored & (to_come <= answer)
            right.append(((likeliest == batch.targets) | ~counts).all(dim=-1).cpu().numpy())
    return float(np.concatenate(right).mean())


def arithmetic_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each symbol, and ``<bos>``."""
    return character_tokenizer(SYMBOLS)
