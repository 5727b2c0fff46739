"""What saved language models make of a text: the loss of every token, and continuations.

``T`` tokens of a text, with the token that begins every document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from routed_rl.errors import user_input
from routed_rl.lm import Batch, Corpus, load_model, load_tokenizer, token_losses
from routed_rl.lm.models import positions
from routed_rl.lm.steering import steered
from routed_rl.lm.tokenizers import first_token, unknown_id

LONGEST = 256
"""Most tokens of a text that are read. Longer texts are cut."""
NEW = 24
"""Most tokens of a continuation."""


class Steering(NamedTuple):
    """A number that is added to one dimension of the residual stream, after one block."""

    block: int
    dimension: int
    strength: float


class Tokens(NamedTuple):
    """A text as a model reads it.

    Attributes:
        ids: ``T`` tokens.
        pieces: for each token after the first one, the part of the text that it stands for, with white space before it.
        unknown: the pieces that are no words of the tokenizer.
        cut: whether the end of the text is left out.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    unknown: tuple[str, ...]
    cut: bool


@lru_cache(maxsize=8)
def model_of(folder: Path) -> nn.Module:
    """Return the model in a folder. It is read once, and shared: do not change it.

    Raises:
        UserError: if it cannot be read.
    """
    with user_input():
        return load_model(str(folder)).eval()


@lru_cache(maxsize=8)
def tokenizer_of(folder: Path) -> Any:
    """Return the tokenizer in a folder, read once.

    Raises:
        UserError: if it cannot be read.
    """
    with user_input():
        return load_tokenizer(str(folder))


def texts_of(corpus: Corpus, documents: Iterable[int], tokenizer: Any) -> list[str]:
    """Return documents of a corpus as texts, without special tokens."""
    places = [corpus.starts[document : document + 2] for document in documents]
    return [tokenizer.decode(corpus.tokens[begin:end].tolist(), skip_special_tokens=True) for begin, end in places]


def tokens_of(model: nn.Module, tokenizer: Any, text: str) -> Tokens:
    """Return a text as tokens, as many as the model has positions for, and at most :data:`LONGEST`.

    A tokenizer without a token for the begin of a document needs a first token of the text in its place. So the first
    piece is then that of the second token.
    """
    most = min(positions(model) or LONGEST, LONGEST)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    inner = encoded["input_ids"]
    if tokenizer.is_fast:
        ends = [end for _, end in encoded["offset_mapping"]]
        pieces = [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    else:
        pieces = [tokenizer.decode([token]) for token in inner]
    unknown = unknown_id(tokenizer)
    strange = [piece.strip() for token, piece in zip(inner, pieces, strict=True) if token == unknown]
    first = first_token(tokenizer)
    ids = [*inner] if first is None else [first, *inner]
    pieces = pieces[1:] if first is None else pieces
    return Tokens(tuple(ids[:most]), tuple(pieces[: most - 1]), tuple(dict.fromkeys(strange)), len(ids) > most)


@torch.no_grad()
def text_losses(model: nn.Module, ids: Sequence[int], steering: Steering | None = None) -> np.ndarray:
    """Return ``(T - 1,)``: the loss of every token after the first one, in nats."""
    if len(ids) < 2:
        return np.zeros(0)
    tokens = torch.tensor([list(ids)])
    batch = Batch(tokens, torch.full_like(tokens, -1), torch.ones_like(tokens[:, 1:], dtype=torch.bool))
    with _steered(model, steering):
        return token_losses(model, batch)[0].double().numpy()


@torch.no_grad()
def continued(
    model: Any, ids: Sequence[int], seed: int | None = None, steering: Steering | None = None, new: int = NEW
) -> tuple[int, ...]:
    """Return the tokens with which a model continues a text, until it ends the text.

    Args:
        ids: the tokens of the text.
        seed: fixes the tokens that are drawn at temperature 1. None: always the likeliest token.
        new: most new tokens. The positions of the model are another limit.
    """
    new, end = min(new, (positions(model) or LONGEST) - len(ids)), model.config.get_text_config().eos_token_id
    ends = end if isinstance(end, list) else [end]
    written: list[int] = []
    chance = None if seed is None else torch.Generator().manual_seed(seed)
    with _steered(model, steering):
        while ids and len(written) < new:  # not generate(), which follows the model's own generation settings
            logits = model(input_ids=torch.tensor([[*ids, *written]]), use_cache=False).logits[0, -1].float()
            token = logits.argmax() if chance is None else torch.multinomial(logits.softmax(0), 1, generator=chance)
            if int(token) in ends:
                break
            written.append(int(token))
    return tuple(written)


@lru_cache(maxsize=1024)
def losses_in(folder: Path, ids: tuple[int, ...], steering: Steering | None = None) -> np.ndarray:
    """Return :func:`text_losses` of the model in a folder, computed once for each text."""
    return text_losses(model_of(folder), ids, steering)


@lru_cache(maxsize=1024)
def continued_in(
    folder: Path, ids: tuple[int, ...], seed: int | None = None, steering: Steering | None = None, new: int = NEW
) -> tuple[int, ...]:
    """Return :func:`continued` of the model in a folder, computed once for each text."""
    return continued(model_of(folder), ids, seed, steering, new)


def _steered(model: nn.Module, steering: Steering | None) -> Any:
    return nullcontext() if steering is None or not steering.strength else steered(model, *steering)
