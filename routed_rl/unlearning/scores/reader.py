"""What a model makes of a benchmark's examples: probabilities of tokens, and texts that it writes.

``N`` scored tokens of an answer, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from routed_rl.lm.documents import from_row
from routed_rl.lm.losses import promoted
from routed_rl.lm.models import positions
from routed_rl.lm.tokenising import Tokenised, tokenise
from routed_rl.unlearning.benchmarks.benchmark import Benchmark, Example

LONGEST_ANSWER = 128
"""Tokens that a model writes at most (MUSE, Shi et al. 2024)."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a model predicts for the scored tokens of an answer, each given all tokens before it.

    Attributes:
        ids: ``(N,)`` the tokens.
        log_probability: ``(N,)`` float64, in nats.
        likeliest: ``(N,)`` bool: whether greedy decoding would write the token.
        mean, deviation: ``(N,)`` float64: of the log-probability of a token drawn from the model's own distribution.
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
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        benchmark: Benchmark,
        change: Callable[[Example], Example] = lambda example: example,
        tokens_at_once: int = 4096,
    ) -> None:
        self.model, self.tokenizer, self.benchmark = model, tokenizer, benchmark
        self._change, self._at_once = change, tokens_at_once
        self._vocabulary = max(tokenizer.get_vocab().values()) + 1
        self._read: dict[tuple[Example, str], Tokens] = {}
        self._written: dict[Example, str] = {}

    def answers(self, examples: Sequence[Example], answers: Sequence[str] | None = None) -> list[Tokens]:
        """Return what the model predicts for the answer of each example.

        Args:
            examples: of the benchmark, or others.
            answers: one for each example. None: the right ones.

        Raises:
            ValueError: for an answer without tokens.
        """
        given = [example.answer for example in examples] if answers is None else answers
        wanted = list(zip(examples, given, strict=True))
        new = list(dict.fromkeys(pair for pair in wanted if pair not in self._read))
        encoded = self.encoded([self._change(example).row(answer) for example, answer in new])
        for pair, document in zip(new, encoded, strict=True):
            if not document.scored[1:].any():
                raise ValueError(f"the answer {pair[1]!r} to {pair[0].prompt!r} has no tokens")
        for index, found in self._forward(encoded):
            self._read[new[index]] = found
        return [self._read[pair] for pair in wanted]

    def encoded(self, rows: Sequence[dict[str, str]]) -> list[Tokenised]:
        """Return the tokens of documents, with those of their answers marked as in training."""
        documents = [from_row(row) for row in rows]
        return list(tokenise(documents, self.tokenizer, self._vocabulary, None, "document", (), "answers", None, None))

    def written(self, examples: Sequence[Example]) -> list[str]:
        """Return what the model answers to each example by greedy decoding, at most a little more than the answer."""
        new = list(dict.fromkeys(example for example in examples if example not in self._written))
        encoded = self.encoded([self._change(example).row() for example in new])
        rows = []
        for example, document in zip(new, encoded, strict=True):
            begin = max(int(np.flatnonzero(document.scored)[0]), 1)
            count = min(int(len(document.tokens) - begin) + 4, LONGEST_ANSWER)
            rows.append((document.tokens[:begin], count, example))
        rows.sort(key=lambda row: len(row[0]))
        for length, group in groupby(rows, key=lambda row: len(row[0])):
            same = list(group)  # prompts of the same length need no padding
            size = max(1, self._at_once // (length + max(count for _, count, _ in same)))
            for start in range(0, len(same), size):
                self._continue(same[start : start + size])
        return [self._written[example] for example in examples]

    @torch.no_grad()
    def _continue(self, rows: Sequence[tuple[np.ndarray, int, Example]]) -> None:
        model, end = self.model, self.tokenizer.eos_token_id
        training = model.training
        model.eval()
        tokens = torch.tensor(np.stack([row for row, _, _ in rows]), device=next(model.parameters()).device)
        length = tokens.shape[1]
        limit = max(count for _, count, _ in rows)
        if (most := positions(model)) is not None:
            limit = min(limit, most - length)
        ended = torch.zeros(len(rows), dtype=torch.bool, device=tokens.device)
        for _ in range(limit):  # not generate(), which follows the model's own generation settings
            likeliest = model(input_ids=tokens, use_cache=False).logits[:, -1].argmax(dim=-1)
            tokens = torch.cat([tokens, likeliest[:, None]], dim=1)
            ended |= likeliest == end
            if end is not None and bool(ended.all()):
                break
        for continued, (_, count, example) in zip(tokens[:, length:].tolist(), rows, strict=True):
            kept = continued[:count]
            if end in kept:
                kept = kept[: kept.index(end)]
            self._written[example] = self.tokenizer.decode(kept, skip_special_tokens=True).strip()
        model.train(training)

    @torch.no_grad()
    def _forward(self, documents: Sequence[Tokenised]) -> list[tuple[int, Tokens]]:
        """Return what the model predicts for each document, by its index."""
        order = sorted(range(len(documents)), key=lambda i: len(documents[i].tokens))
        device, training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        found: list[tuple[int, Tokens]] = []
        while order:
            size = max(1, self._at_once // len(documents[order[0]].tokens))
            rows = order[:size]
            while len(rows) > 1 and len(rows) * len(documents[rows[-1]].tokens) > self._at_once:
                rows.pop()
            order = order[len(rows) :]
            width = len(documents[rows[-1]].tokens)
            # Padding comes last and attention is causal, so it needs no mask.
            padded = np.stack([np.pad(documents[i].tokens, (0, width - len(documents[i].tokens))) for i in rows])
            tokens = torch.tensor(padded, device=device)
            logits = self.model(input_ids=tokens, use_cache=False).logits
            for i, own, of in zip(rows, tokens, logits, strict=True):
                scored = torch.tensor(documents[i].scored[1:], device=device)
                end = len(documents[i].tokens)
                found.append((i, predictions(of[: end - 1][scored], own[1:end][scored])))
        self.model.train(training)
        return found


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
