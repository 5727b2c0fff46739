"""Prompts and their right answers: measure what a model knows by what it writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from routed_rl.lm.reading import rows
from routed_rl.lm.tokenizers import first_token, unknown_id
from routed_rl.lm.unicode import check_unicode, composed
from routed_rl.runs.files import StrPath


@dataclass(frozen=True)
class Prompt:
    """The ``text`` of a prompt, its right ``answer``, and whether the answer belongs to the ``forget`` set."""

    text: str
    answer: str
    forget: bool = False


def read_prompts(path: StrPath) -> list[Prompt]:
    """Return the prompts of a ``.jsonl`` file.

    Each line is an object with ``"prompt"`` and ``"answer"``, which may not be blank, and ``"forget"``, true or false.

    Raises:
        ValueError: for a line that is not such an object, or a file without forget prompts or without retain prompts.
        OSError: if the file cannot be read.
    """
    prompts = []
    for where, row in rows(path):
        text, answer, forget = row.get("prompt"), row.get("answer"), row.get("forget")
        if not (
            isinstance(text, str)
            and isinstance(answer, str)
            and isinstance(forget, bool)
            and answer.strip()
            and text.strip()
        ):
            raise ValueError(
                f"{where}: expected the texts 'prompt' and 'answer', not blank, and 'forget', true or false, got "
                f"{str(row)[:60]!r}"
            )
        check_unicode(text + answer, where)
        prompts.append(Prompt(text, answer, forget))
    for forget, kind in ((True, "forget"), (False, "retain")):
        if not any(prompt.forget == forget for prompt in prompts):
            raise ValueError(f'{str(path)!r} has no {kind} prompts: add lines with "forget": {str(forget).lower()}')
    return prompts


@torch.no_grad()
def completion_accuracy(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], new_tokens: int = 4, batch_size: int = 64
) -> float:
    """Return the share of prompts that a model continues rightly with greedy decoding (UNDO's accuracy).

    The written text is stripped. If the answer is a number, the text before the first space must be that number.
    Otherwise the text must begin with the answer.

    Args:
        new_tokens: how many tokens the model writes after each prompt.
        batch_size: most prompts at a time.

    Raises:
        ValueError: if there are no prompts.
    """
    if not prompts:
        raise ValueError("there are no prompts")
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    answers = [prompt.answer for prompt in prompts]
    rows = list(zip(encode_prompts(tokenizer, prompts), answers, strict=True))
    right = 0
    for length, group in groupby(sorted(rows, key=lambda row: len(row[0])), key=lambda row: len(row[0])):
        same = list(group)  # prompts of the same length need no padding
        for i in range(0, len(same), batch_size):
            batch = same[i : i + batch_size]
            tokens = torch.tensor([row for row, _ in batch], device=device)
            for _ in range(new_tokens):  # not generate(), which follows the model's own generation settings
                likeliest = model(input_ids=tokens, use_cache=False).logits[:, -1:].argmax(dim=-1)
                tokens = torch.cat([tokens, likeliest], dim=1)
            for written, (_, answer) in zip(tokens[:, length:].tolist(), batch, strict=True):
                if tokenizer.eos_token_id in written:
                    written = written[: written.index(tokenizer.eos_token_id)]
                right += _is_right(tokenizer.decode(written, skip_special_tokens=True), answer)
    model.train(training)
    return right / len(prompts)


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt's text, after the token that begins every document, if there is one."""
    return encode_prompts(tokenizer, [prompt])[0]


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the tokens of each prompt, as :func:`encode_prompt` does, in a fraction of the time."""
    first, unknown = first_token(tokenizer), unknown_id(tokenizer)
    texts = tokenizer([prompt.text for prompt in prompts], add_special_tokens=False)["input_ids"]
    return [
        tokens if first is None or (tokens[:1] == [first] and first != unknown) else [first, *tokens]
        for tokens in texts
    ]


def _is_right(written: str, answer: str) -> bool:
    written, answer = composed(written.strip()), composed(answer.strip())
    try:
        number = float(answer)
    except ValueError:
        return written.startswith(answer)
    try:
        return math.isclose(float(written.split()[0]), number, rel_tol=0.0, abs_tol=1e-6)
    except (ValueError, IndexError):
        return False
