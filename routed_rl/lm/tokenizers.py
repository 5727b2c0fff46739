"""Tokenizers: a digest that identifies one, and new ones trained on given text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from routed_rl.lm.documents import Document

BOS, EOS = "<bos>", "<eos>"


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer like GPT-2's, with at most ``vocab_size`` tokens (fewer for a short text).

    It depends only on the documents. Every text can be recovered from its tokens.

    Raises:
        ValueError: for no documents, or a vocabulary that is too small for all bytes, ``<bos>`` and ``<eos>``.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len((BOS, EOS))
    if vocab_size < smallest:
        raise ValueError(f"a vocabulary needs {smallest} tokens for all bytes, {BOS} and {EOS}, got {vocab_size}")
    seen = 0

    def texts() -> Iterable[str]:
        nonlocal seen
        for document in documents:
            seen += 1
            yield document.text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # a token's offsets leave out its leading space
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    if not seen:
        raise ValueError("a tokenizer needs documents to be trained on, and there are none")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return 10 hex digits that identify what a tokenizer makes of texts, to recognise a corpus."""
    does: dict[str, Any] = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    if tokenizer.is_fast:
        does |= json.loads(tokenizer.backend_tokenizer.to_str())
        # A call leaves its padding and truncation here. They do not matter, because the next call sets its own.
        does |= {"padding": None, "truncation": None}
    else:
        does["vocabulary"] = tokenizer.get_vocab()
    if template := getattr(tokenizer, "chat_template", None):
        does["chat_template"] = template
    return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()[:10]


def first_token(tokenizer: Any) -> int | None:
    """Return the token that begins each document: the tokenizer's BOS. None: it has none, or models do not expect it.

    GPT-2's tokenizer has one token for BOS and EOS and does not write it before a text. The BOS of some chat models
    begins a message, not a text, and is written by their chat template.
    """
    bos, (begin, *rest) = tokenizer.bos_token_id, tokenizer("a")["input_ids"]
    if bos is None or (begin == bos and rest):
        return bos  # type: ignore[no-any-return]
    switched_off = tokenizer.init_kwargs.get("add_bos_token") is False
    of_messages = tokenizer.bos_token in str(getattr(tokenizer, "chat_template", None))
    return None if bos == tokenizer.eos_token_id or switched_off or of_messages else bos


def unknown_id(tokenizer: Any) -> int | None:
    """Return the token of unknown words. If it is EOS or BOS, that token in a text is no sign of an end or a begin."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    token = tokenizer.unk_token or getattr(model, "unk_token", None)
    return None if token is None else int(tokenizer.convert_tokens_to_ids(token))


def special_ids(tokenizer: Any) -> list[int]:
    """Return the ids of tokens that are no text: BOS, EOS, and those that a chat template writes around messages."""
    added = {token for token, of in tokenizer.added_tokens_decoder.items() if of.special}
    return sorted({*tokenizer.all_special_ids, *added} - {unknown_id(tokenizer)})


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each of these characters, and ``<bos>``, which stands for any other."""
    tokenizer = Tokenizer(models.WordLevel({BOS: 0, **{c: i for i, c in enumerate(characters, 1)}}, unk_token=BOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)
