"""Two made-up languages: a corpus of which a model can forget one (UNDO, in small).

In each, a symbol follows from the two before it: every pair has four successors, drawn once and for all, with the
probabilities :data:`SUCCESSORS`. A model that knows a language has a loss of 1.11 nats, their entropy.
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
LENGTH = 48
"""Symbols of a text."""
LATIN, GREEK = "abcdefghijklmnopqrstuvwx", "αβγδεζηθικλμνξοπρστυφχψω"
MARKS = "<>"
"""Where both languages are written alike, each text begins with its language's mark."""
WORLD = 0
"""Seed of the languages, which are the same in every corpus."""


def generate_languages(n: int, seed: int, shared: bool = False) -> Iterator[Document]:
    """``n`` texts, in turn of the language to keep, without a topic, and of the one to forget, with the topic
    :data:`FORGOTTEN`.

    Args:
        shared: both are written in Latin letters and told apart by a mark alone; else the second one has Greek letters,
            of which a model that never saw it knows nothing at all.
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
    """A token for each letter of :func:`generate_languages`, and ``<bos>``."""
    return character_tokenizer(LATIN + (MARKS if shared else GREEK))
