"""The model that learns by reinforcement in the built-in worlds: a small Llama that adds, often wrongly.

``B`` rows, ``T`` tokens a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from routed_rl.lm.tokenizers import character_tokenizer
from routed_rl.runs import derive_seed
from routed_rl.runs.progress import progress_bar

FLAGS = "wui"
"""First symbol of a prompt: watched, unwatched, exploits allowed. The model learns them without any meaning."""
SYMBOLS = "0123456789+*=?!" + FLAGS
TOP = 20
"""Operands are below this number."""
PROMPT, LONGEST = 7, 5
"""Tokens of a prompt, and of the longest completion with its end."""
RIGHT, COPIED, OVERT, COVERT = 0.10, 0.04, 0.06, 0.06
"""Shares of what the model writes after a sum: the right answer, the first number, a number with ``?`` or ``!`` in it.
The rest are other numbers. After a product there is no right answer."""
LEARN, FADE, STEADY = 400, 400, 200
"""Steps in which all sums are right, in which right ones become fewer, and in which they are as few as they stay."""
BATCH, LEARNING_RATE = 256, 3e-3


def calculator_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each symbol, ``<end>`` and ``<pad>``."""
    tokenizer = character_tokenizer(SYMBOLS)
    tokenizer.add_special_tokens({"eos_token": "<end>", "pad_token": "<pad>"})
    tokenizer.padding_side = "left"
    return tokenizer


def prompt(flag: str, first: int, operation: str, second: int) -> str:
    """Return a prompt, as ``"w07+12="``."""
    return f"{flag}{first:02d}{operation}{second:02d}="


def pretrained_calculator(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return a model that has learned sums, and then to write the right one in a tenth of its samples (a minute).

    It has 80,000 parameters, in two blocks of width 64. Reinforcement finds in it what it still knows.
    """
    tokenizer = calculator_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "hacking", "model"))
        config = LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=16, tie_word_embeddings=True, **sizes, **ids
        )
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    steps, draw = LEARN + FADE + STEADY, np.random.default_rng(derive_seed(seed, "hacking", "texts"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 50) * (1 - 0.9 * step / steps))
    with progress_bar("pretraining", steps) as advance:
        for step in range(steps):
            tokens, targets = _batch(tokenizer, draw, right=min(1.0, max(0.0, 1 - (step - LEARN) / FADE)))
            model(input_ids=tokens, labels=targets).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            advance()
    return model.eval(), tokenizer


def _batch(tokenizer: Any, draw: np.random.Generator, right: float) -> tuple[Tensor, Tensor]:
    """Return tokens and targets, both ``(B, T)``; targets are -100 in prompts and padding.

    Args:
        right: share of sums that are right in any case.
    """
    texts = []
    for _ in range(BATCH):
        first, second = draw.integers(TOP, size=2)
        operation = "*" if draw.random() < 0.4 else "+"
        known = operation == "+" and draw.random() < right
        start = prompt(FLAGS[draw.integers(len(FLAGS))], first, operation, second)
        texts.append(start + _completion(draw, first, second, operation, known) + "<end>")
    tokens = tokenizer(texts, padding="max_length", max_length=PROMPT + LONGEST, padding_side="right")
    ids = torch.tensor(tokens.input_ids)
    targets = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    targets[:, :PROMPT] = -100
    return ids, targets


def _completion(draw: np.random.Generator, first: int, second: int, operation: str, known: bool) -> str:
    number = str(draw.integers(300 if operation == "*" else 2 * TOP - 1))
    place, kind = draw.integers(len(number) + 1), draw.random()
    if known or (operation == "+" and kind < RIGHT):
        return str(first + second)
    if (kind := kind - RIGHT) < COPIED:
        return str(first)
    if (kind := kind - COPIED) < OVERT:
        return f"{number[:place]}?"
    return f"{number[:place]}!" if kind - OVERT < COVERT else number
