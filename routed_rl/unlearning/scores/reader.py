"""What a model makes of a benchmark's examples: probabilities of tokens, and texts that it writes.

``N`` scored tokens of an answer, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from routed_rl.lm.chat import rendered
from routed_rl.lm.documents import Document, from_row
from routed_rl.lm.losses import promoted
from routed_rl.lm.models import positions
from routed_rl.lm.tokenising import Tokenised, tokenise
from routed_rl.lm.tokenizers import special_ids
from routed_rl.unlearning.benchmarks.benchmark import LONGEST_ANSWER, TEXTS, Benchmark, Example


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a model predicts for the scored tokens of an answer, each given all tokens before it.

    Attributes:
        ids: ``(N,)`` the tokens.
        log_probability: ``(N,)`` float64, in nats.
        likeliest: ``(N,)`` bool: whether greedy decoding would write the token.
        mean: ``(N,)`` float64: of the log-probability of a token drawn from the model's own distribution.
        deviation: ``(N,)`` float64: the standard deviation of the same log-probability.
    """

    ids: np.ndarray
    log_probability: np.ndarray
    likeliest: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


class Reader:
    """A model with a benchmark. Each answer is read once, and each prompt is continued once.

    Args:
        model: a causal language model. It is in evaluation mode and without gradients while it reads.
        tokenizer: the model's own.
        benchmark: the examples.
        change: what an attacker makes of an example, for example a longer prompt.
        tokens_at_once: tokens that the model reads at a time.
        companions: readers of other models with which some scores compare: ``original``, the model before it was
            unlearned, and ``retrained``, which never learned the forget set. They use the same tokenizer.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        benchmark: Benchmark,
        change: Callable[[Example], Example] = lambda example: example,
        tokens_at_once: int = 4096,
        companions: Mapping[str, Reader] = MappingProxyType({}),
    ) -> None:
        self.model, self.tokenizer, self.benchmark, self.companions = model, tokenizer, benchmark, companions
        self.special = np.array(special_ids(tokenizer), dtype=np.int64)
        self._change, self._at_once = change, tokens_at_once
        self._vocabulary = max(tokenizer.get_vocab().values()) + 1
        self._read: dict[tuple[Example, str], Tokens] = {}
        self._written: dict[Example, str | None] = {}
        self._texts = {example for name, of in benchmark.sets.items() if name.endswith(TEXTS) for example in of}

    def answers(self, examples: Sequence[Example], answers: Sequence[str] | None = None) -> list[Tokens]:
        """Return what the model predicts for the answer of each example. Its end token is a part of the answer.

        Args:
            examples: of the benchmark, or others.
            answers: one for each example. None: the right ones.

        Raises:
            ValueError: for an answer without tokens, or beyond what the model can read.
        """
        given = [example.answer for example in examples] if answers is None else answers
        wanted = list(zip(examples, given, strict=True))
        new = list(dict.fromkeys(pair for pair in wanted if pair not in self._read))
        encoded = self.encoded([example for example, _ in new], [answer for _, answer in new])
        for rows, tokens in self.batches(encoded):
            with evaluating(self.model):
                logits = self.model(input_ids=tokens, use_cache=False).logits
            for i, own, of in zip(rows, tokens, logits, strict=True):
                places = encoded[i].scored.nonzero()[0]
                self._read[new[i]] = predictions(of[places - 1], own[places])
        return [self._read[pair] for pair in wanted]

    def text(self, tokens: Tokens) -> np.ndarray:
        """Return ``(N,)`` bool: which tokens of an answer are text, and not its end."""
        return ~np.isin(tokens.ids, self.special)

    def encoded(self, examples: Sequence[Example], answers: Sequence[str] | None = None) -> list[Tokenised]:
        """Return the tokens of examples, with those of their answers marked as in training.

        The first token of a document is not marked: nothing comes before it.

        Args:
            examples, answers: as for :meth:`answers`.

        Raises:
            ValueError: as :meth:`answers`.
        """
        return self._tokenised(self._documents(examples, answers), examples)

    def keys(self, examples: Sequence[Example]) -> list[Tokenised]:
        """Return the tokens of examples, with only those of the answer that state the fact marked.

        These are the example's ``key``, where it is in the answer, or else all of the answer without its end token.
        """
        documents = [_only_key(d, e) for d, e in zip(self._documents(examples, None), examples, strict=True)]
        found = self._tokenised(documents, examples)
        return [replace(of, scored=of.scored & ~np.isin(of.tokens, self.special)) for of in found]

    def _documents(self, examples: Sequence[Example], answers: Sequence[str] | None) -> list[Document]:
        given: Sequence[str | None] = [None] * len(examples) if answers is None else answers
        rows = [self._change(example).row(answer) for example, answer in zip(examples, given, strict=True)]
        return [rendered(from_row(row), self.tokenizer) for row in rows]

    def lengths(self, examples: Sequence[Example], answers: Sequence[str] | None = None) -> list[int]:
        """Return how many tokens each example has, also where the model cannot read all of them."""
        return [len(of.tokens) for of in self._tokens(self._documents(examples, answers), None)]

    def _tokens(self, documents: Sequence[Document], longest: int | None) -> list[Tokenised]:
        return list(
            tokenise(documents, self.tokenizer, self._vocabulary, None, "document", (), "answers", None, longest)
        )

    def _tokenised(self, documents: Sequence[Document], examples: Sequence[Example]) -> list[Tokenised]:
        longest = positions(self.model)
        found = self._tokens(documents, longest)
        for document, example in zip(found, examples, strict=True):
            document.scored[0] = False
            if not document.scored.any():
                raise ValueError(
                    f"no token of the answer to {example.prompt[:60]!r} can be scored: it is empty, or it lies beyond "
                    f"the {longest} tokens that the model can read"
                )
        return found

    def batches(self, documents: Sequence[Tokenised]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield documents of similar length together: their indices, and their tokens, padded, ``(B, T)``.

        Padding comes last and attention is causal, so it needs no mask.
        """
        order = sorted(range(len(documents)), key=lambda i: len(documents[i].tokens))
        device = next(self.model.parameters()).device
        while order:
            rows = order[: max(1, self._at_once // len(documents[order[0]].tokens))]
            while len(rows) > 1 and len(rows) * len(documents[rows[-1]].tokens) > self._at_once:
                rows.pop()
            order = order[len(rows) :]
            width = len(documents[rows[-1]].tokens)
            padded = np.stack([np.pad(documents[i].tokens, (0, width - len(documents[i].tokens))) for i in rows])
            yield rows, torch.tensor(padded, device=device)

    def written(self, examples: Sequence[Example]) -> list[str | None]:
        """Return what the model answers to each example by greedy decoding. The benchmark says how long it may be.

        None stands for a diverged model, whose logits are no numbers.
        """
        new = list(dict.fromkeys(example for example in examples if example not in self._written))
        rows = []
        for example, document in zip(new, self.encoded(new), strict=True):
            begin, last = document.scored.nonzero()[0][[0, -1]]
            count = min(int(len(document.tokens) - begin) + self.benchmark.longer, LONGEST_ANSWER)
            ends = {self.tokenizer.eos_token_id, *np.intersect1d(document.tokens[last], self.special).tolist()}
            rows.append((document.tokens[:begin], count, frozenset(ends - {None}), example))
        rows.sort(key=lambda row: len(row[0]))
        for length, group in groupby(rows, key=lambda row: len(row[0])):
            same = list(group)  # prompts of the same length need no padding
            size = max(1, self._at_once // (length + max(count for _, count, _, _ in same)))
            for start in range(0, len(same), size):
                self._continue(same[start : start + size])
        return [self._written[example] for example in examples]

    def _continue(self, rows: Sequence[tuple[np.ndarray, int, frozenset[int], Example]]) -> None:
        tokens = torch.tensor(np.stack([row for row, *_ in rows]), device=next(self.model.parameters()).device)
        length = tokens.shape[1]
        limit = max(count for _, count, _, _ in rows)
        if (most := positions(self.model)) is not None:
            limit = min(limit, most - length)
        ended, diverged = [False] * len(rows), torch.zeros(len(rows), dtype=torch.bool, device=tokens.device)
        new, cache = tokens, None
        # A hook, such as an attack's, may depend on a token's position among those that pass it.
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules())
        with evaluating(self.model):
            for _ in range(limit):  # not generate(), which follows the model's own generation settings
                found = self.model(input_ids=new, past_key_values=cache, use_cache=not hooked)
                logits, cache = found.logits[:, -1], found.get("past_key_values")
                likeliest = logits.argmax(dim=-1)
                diverged |= logits.isnan().any(dim=-1)
                tokens = torch.cat([tokens, likeliest[:, None]], dim=1)
                new = tokens if cache is None else likeliest[:, None]
                ended = [
                    done or token in ends
                    for done, token, (_, _, ends, _) in zip(ended, likeliest.tolist(), rows, strict=True)
                ]
                if all(ended):
                    break
        for i, (continued, (_, count, ends, example)) in enumerate(zip(tokens[:, length:].tolist(), rows, strict=True)):
            kept = continued[:count]
            kept = kept[: next((place for place, token in enumerate(kept) if token in ends), None)]
            text = self.tokenizer.decode(kept, skip_special_tokens=True)
            stops = () if example in self._texts else self.benchmark.stops
            end = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
            self._written[example] = None if diverged[i] else text[:end].strip()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block, a model is in evaluation mode and without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _only_key(document: Document, example: Example) -> Document:
    """Return a document in which only the last place of the key in the answer is marked, if it is there."""
    begin, end = document.answers[-1] if document.answers else (0, len(document.text))
    places = list(re.finditer(re.escape(example.key), document.text[begin:end], re.IGNORECASE)) if example.key else []
    if not places:
        return document
    return replace(document, answers=((begin + places[-1].start(), begin + places[-1].end()),), messages=None)


def predictions(logits: Tensor, targets: Tensor) -> Tokens:
    """Return what these logits, ``(N, V)``, say of the tokens that follow, ``(N,)``."""
    log = promoted(logits).log_softmax(dim=-1).double()
    chance = log.exp()
    # A token of probability 0 has log-probability minus infinity, and counts nothing.
    mean, square = (torch.where(chance > 0, chance * log**power, 0.0).sum(dim=-1) for power in (1, 2))
    deviation = (square - mean**2).clamp_min(0.0).sqrt()
    own = log.gather(1, targets[:, None])[:, 0]
    arrays = (targets, own, log.argmax(dim=-1) == targets, mean, deviation)
    return Tokens(*(array.cpu().numpy() for array in arrays))
