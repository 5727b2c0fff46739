"""Generated stories on six topics: a corpus that a model learns in a minute, and whose forget set is known exactly.

A sentence is "the A near B with C". Its words are those of the story's topic, or generic. Each word is likely to follow
from the word before, by permutations that are the same in every corpus. So there is something to learn about each
topic, and to unlearn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from routed_rl.lm.documents import Document
from routed_rl.lm.tokenizers import BOS, EOS
from routed_rl.runs import derive_seed

_WORDS = """
forest: tree oak leaf moss fern bark owl deer path root pine acorn
sea: ship wave whale sail crab shell tide coral anchor pearl gull reef
kitchen: bread stove soup knife butter oven plate salt spoon cake pepper jar
space: rocket moon comet orbit star planet probe crater galaxy dust ray dome
farm: horse barn hay plough goat seed fence hen wheat cart pond calf
music: drum flute choir chord violin song harp rhythm tune bell tenor organ
generic: day friend house road name hand story night door light word game
"""
TOPICS = {topic: tuple(words.split()) for topic, words in re.findall(r"(\w+): (.*)", _WORDS)}
"""Topic → the 12 words of its stories."""
GENERIC = TOPICS.pop("generic")
FUNCTION = ("the", "near", "with", "and", "a", "to", "of", "in", "it", "was")
STORY_WORDS = frozenset((*FUNCTION, *GENERIC, *itertools.chain(*TOPICS.values())))
FORGET = "forest"
"""The topic of generated stories that is to be forgotten."""
SHARE = 0.2
"""Share of the stories with the forget topic. The other topics share the rest equally."""
LENGTH = 40
"""Tokens of a story, with ``<bos>`` and ``<eos>``."""
WORLD = 0
"""Seed of the permutations. They are the same for every corpus."""


def generate_stories(n: int, seed: int) -> Iterator[Document]:
    """Yield ``n`` stories, each on one topic, of sentences "the A near B with C".

    The words of a sentence come from the topic's 12 words with probability 0.7, else from 12 generic words.
    A has a geometric distribution over these words. B and C follow from the word before with probability 0.9, else
    they are uniform.
    """
    words = [np.array(topic) for topic in (*TOPICS.values(), GENERIC)]
    names, size = list(TOPICS), len(GENERIC)
    worlds = [np.random.default_rng(derive_seed(WORLD, "permutations", i)) for i in range(len(words))]
    follows = [[rng.permutation(size), rng.permutation(size)] for rng in worlds]
    rng = np.random.default_rng(derive_seed(seed, "stories"))
    shares = [SHARE if name == FORGET else (1 - SHARE) / (len(names) - 1) for name in names]
    sentences = -(-(LENGTH - 2) // 6)
    for _ in range(n):
        topic = int(rng.choice(len(names), p=shares))
        text: list[str] = []
        for _ in range(sentences):
            kind = topic if rng.random() < 0.7 else len(names)
            chosen = [min(int(rng.geometric(0.3)) - 1, size - 1)]
            for follow in follows[kind]:
                chosen.append(int(follow[chosen[-1]]) if rng.random() < 0.9 else int(rng.integers(size)))
            text += itertools.chain(*zip(FUNCTION, words[kind][chosen], strict=False))
        yield Document(" ".join(text[: LENGTH - 2]), names[topic])


def stories_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the 96 words, ``<bos>`` and ``<eos>`` included. Any other word becomes ``<eos>``."""
    words = [BOS, EOS, *FUNCTION, *GENERIC, *itertools.chain(*TOPICS.values())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=EOS))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
