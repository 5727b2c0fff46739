"""Two made-up languages: a model can forget one and keep the other. This is UNDO's language setting in small.

In each language a symbol depends on the two symbols before it. Every pair has four successors, fixed once and for all,
with the probabilities :data:`SUCCESSORS`. Their entropy is 1.11 nats, the loss of a model that knows the language.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from transformers import PreTrainedTokenizerFast

from routed_rl.lm.documents import Document
from routed_rl.lm.tokenizers import character_tokenizer
from routed_rl.runs import derive_seed

SUCCESSORS = (0.55, 0.25, 0.15, 0.05)
FORGOTTEN = "forgotten"
"""The topic of generated texts in the language that is to be forgotten."""
LENGTH = 48
"""Symbols of a text."""
LATIN, GREEK = "abcdefghijklmnopqrstuvwx", "αβγδεζηθικλμνξοπρστυφχψω"
MARKS = "<>"
"""Where both languages use Latin letters, each text begins with the mark of its language."""
WORLD = 0
"""Seed of the languages. They are the same in every corpus."""


def generate_languages(n: int, seed: int, shared: bool = False) -> Iterator[Document]:
    """Yield ``n`` texts, which alternate between the two languages.

    Texts of the retain language have no topic, those of the forget language the topic :data:`FORGOTTEN`.

    Args:
        shared: True: both languages use Latin letters and differ only in a mark. False: the forget language uses Greek
            letters, about which a model that never saw it knows nothing.
    """
    size = len(LATIN)
    worlds = [np.random.default_rng(derive_seed(WORLD, "language", i)) for i in range(2)]
    successors = [rng.permuted(np.tile(np.arange(size), (size, size, 1)), axis=-1)[..., :4] for rng in worlds]
    rng = np.random.default_rng(derive_seed(seed, "languages"))
    for i in range(n):
        language = i % 2
        symbols = list(rng.integers(size, size=2))
        for choice in rng.choice(len(SUCCESSORS), size=LENGTH - 2, p=SUCCESSORS):
            symbols.append(successors[language][symbols[-2], symbols[-1], choice])
        letters = GREEK if language and not shared else LATIN
        mark = MARKS[language] if shared else ""
        yield Document(mark + "".join(letters[symbol] for symbol in symbols), (None, FORGOTTEN)[language])


def language_tokenizer(shared: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each letter of :func:`generate_languages`, and ``<bos>``."""
    return character_tokenizer(LATIN + (MARKS if shared else GREEK))
