"""The loss of answers to questions with a suffix, and its gradient for each word of the suffix.

``B`` examples, ``T`` tokens, ``D`` dimensions of embeddings, ``N`` words of the suffix, ``W`` words to choose from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from routed_rl.errors import UserError
from routed_rl.lm.batches import NO_LABEL, PADDING, Batch
from routed_rl.lm.losses import next_token_loss
from routed_rl.lm.tokenizers import special_ids
from routed_rl.unlearning.arena.attacks.attack import Victim
from routed_rl.unlearning.benchmarks.benchmark import Example


class SuffixLoss:
    """The loss of answers, given their questions with a suffix. A suffix is ``(N,)`` numbers of :attr:`words`.

    Args:
        victim: the model is frozen and in evaluation mode.
        examples: the attacker's own.
        length: words of a suffix.

    Raises:
        UserError: if the tokenizer has no words of one token, or no example leaves room for a suffix.

    Attributes:
        words: ``W`` words, each one token within a text.
        examples: at most a batch, of those that leave room for a suffix.
    """

    def __init__(self, victim: Victim, examples: Sequence[Example], length: int) -> None:
        self._victim = victim
        self.words, self._tokens = single_words(victim.tokenizer)
        any_suffix = np.zeros(length, dtype=int)
        found = [example for example in examples if victim.fits(self._with(example, any_suffix))]
        if not found:
            raise UserError(f"no question leaves room for a suffix of {length} words: leave out the attack suffix")
        self.examples = found[: victim.batch_size]

    def __call__(self, suffix: np.ndarray) -> float:
        """Return the loss, in nats, summed over the tokens of all answers."""
        with torch.no_grad():
            return float(next_token_loss(self._victim.model, self._batch(suffix)))

    def slopes(self, suffix: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss, and ``(N, W)``: its first-order change with each word at each place, up to a constant."""
        model: Any = self._victim.model
        embeddings, batch, outputs = model.get_input_embeddings(), self._batch(suffix), []

        def leaf(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            outputs.append(output.detach().requires_grad_())
            return outputs[-1]

        handle = embeddings.register_forward_hook(leaf)
        try:
            loss = next_token_loss(model, batch)
        finally:
            handle.remove()
        (of_outputs,) = torch.autograd.grad(loss, outputs)
        rows, places = self._places(batch, suffix)
        of_places = of_outputs[rows[:, None], places].sum(dim=0)  # (N, D)
        words = embeddings.weight.detach()[torch.tensor(self._tokens, device=of_places.device)]
        return float(loss.detach()), (of_places @ words.mT).double().cpu().numpy()

    def change(self, suffix: np.ndarray) -> Callable[[Example], Example]:
        """Return a function that adds a suffix to a question, if there is room for it."""

        @cache
        def changed(example: Example) -> Example:
            longer = self._with(example, suffix)
            return longer if self._victim.fits(longer) else example

        return changed

    def _with(self, example: Example, suffix: np.ndarray) -> Example:
        return replace(example, prompt=" ".join([example.prompt, *(self.words[i] for i in suffix)]))

    def _batch(self, suffix: np.ndarray) -> Batch:
        documents = self._victim.reader.encoded([self._with(example, suffix) for example in self.examples])
        shape = (len(documents), max(len(document.tokens) for document in documents))
        tokens, scored = np.zeros(shape, np.int64), np.zeros(shape, bool)
        examples, labels = np.full(shape, PADDING), np.full(shape, NO_LABEL)
        for i, document in enumerate(documents):
            own = slice(len(document.tokens))
            tokens[i, own], scored[i, own], examples[i, own] = document.tokens, document.scored, 0
        arrays = (tokens, labels, scored[:, 1:].copy(), examples)
        return Batch(*map(torch.from_numpy, arrays)).to(next(self._victim.model.parameters()).device)

    def _places(self, batch: Batch, suffix: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the rows in which the suffix is found as one token a word, and ``(rows, N)``: where it is."""
        wanted = torch.tensor(self._tokens[suffix], device=batch.tokens.device)
        windows = batch.tokens.unfold(1, len(wanted), 1)
        found = (windows == wanted).all(dim=-1)
        rows = found.any(dim=1).nonzero()[:, 0]
        last = windows.shape[1] - 1 - found[rows].flip(1).int().argmax(dim=1)
        return rows, last[:, None] + torch.arange(len(wanted), device=last.device)


def single_words(tokenizer: Any) -> tuple[list[str], np.ndarray]:
    """Return the words that are one token within a text, and their tokens, ``(W,)``.

    Raises:
        UserError: if there are none, as for a tokenizer of characters.
    """
    ids = sorted({*tokenizer.get_vocab().values()} - {*special_ids(tokenizer)})
    words = [text for i in ids if (text := tokenizer.decode([i]).strip()).isalnum()]
    words = list(dict.fromkeys(words))
    within = tokenizer([f"a {word} a" for word in words], add_special_tokens=False)["input_ids"] if words else []
    found = {word: row[1] for word, row in zip(words, within, strict=True) if len(row) == 3}
    if not found:
        raise UserError("the tokenizer has no words of one token: leave out the attack suffix")
    return list(found), np.array(list(found.values()))
