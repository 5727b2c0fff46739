"""Who sees which completion and says what of it, and a monitor that learns from what was said.

``B`` completions, ``D`` width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routed_rl.lm.adapters import Adapters
from routed_rl.lm.hacking.methods import UNSEEN, Method
from routed_rl.lm.hacking.worlds import FINE, HACK, SOLVED, WRONG, HackingWorld, Row
from routed_rl.runs import derive_seed

REMEMBERED = 1024
"""Labelled completions from which a monitor learns: the latest ones."""


class Monitor:
    """Predicts what an overseer would say of a completion, by ridge regression that is fitted anew in each update.

    It sees hidden states of the model without adapters, so training cannot change what it sees.
    """

    def __init__(self, adapters: Adapters, tokenizer: Any, at_once: int | None = None) -> None:
        self._adapters, self._tokenizer, self._at_once = adapters, tokenizer, at_once
        self.seen: list[np.ndarray] = []
        self.said: list[str] = []

    @torch.no_grad()
    def features(self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return ``(B, 2 D)``: the last layer's state at the last token, and its mean over the completion."""
        model, count = self._adapters.model, len(prompts)
        was_training, size = model.training, self._at_once or count
        model.eval()
        with model.disable_adapter():
            parts = [
                self._states(prompts[at : at + size], completion_ids[at : at + size]) for at in range(0, count, size)
            ]
        model.train(was_training)
        return np.concatenate(parts)

    def _states(self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> np.ndarray:
        model, pad = self._adapters.model, self._tokenizer.pad_token_id
        rows = [[*self._tokenizer(prompt).input_ids, *ids] for prompt, ids in zip(prompts, completion_ids, strict=True)]
        longest, device = max(map(len, rows)), next(model.parameters()).device
        tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
        from_end = longest - torch.arange(longest, device=device)  # 1 at the last token
        whole, written = (
            from_end <= torch.tensor([[max(len(of), 1)] for of in given], device=device)
            for given in (rows, completion_ids)
        )
        states: Tensor = model.get_base_model().base_model(input_ids=tokens, attention_mask=whole.long())[0]
        counted = written[..., None].to(states.dtype)
        mean = (states * counted).sum(dim=1) / counted.sum(dim=1)
        return torch.cat([states[:, -1], mean], dim=-1).float().cpu().numpy()

    def learn(self, features: np.ndarray, said: Sequence[str]) -> None:
        """Remember what an overseer said of completions."""
        self.seen = [*self.seen, *features][-REMEMBERED:]
        self.said = [*self.said, *said][-REMEMBERED:]

    def predict(self, features: np.ndarray) -> list[str | None]:
        """Return what an overseer would say; None as long as it has always said the same."""
        from sklearn.linear_model import RidgeClassifier

        if len(set(self.said)) < 2 or not len(features):
            return [None] * len(features)
        fitted = RidgeClassifier(class_weight="balanced").fit(np.stack(self.seen), self.said)
        return [str(label) for label in fitted.predict(features)]


class Labels:
    """The overseer of :class:`~routed_rl.lm.grpo.RoutedGRPOTrainer`, for a method and a world.

    Args:
        prompts: the world's rows. The column ``row`` of the dataset has the number of each.

    Attributes:
        right: how good the monitor was in each update: the share of unseen completions, and that of unseen hacks, that
            it judged rightly. NaN if there were none.
    """

    def __init__(
        self,
        world: HackingWorld,
        method: Method,
        oversight: float,
        seed: int,
        prompts: Sequence[Row],
        monitor: Monitor,
    ) -> None:
        self.world, self.method, self.oversight, self.seed = world, method, oversight, seed
        self.prompts, self.monitor = prompts, monitor
        self.right: list[tuple[float, float]] = []

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        row: Sequence[int],
        trainer_state: Any,
        solo: bool,
        **_: Any,
    ) -> list[str | None]:
        rows, count = [self.prompts[number] for number in row], len(completions)
        draw = np.random.default_rng([derive_seed(self.seed, "hacking", "overseer"), trainer_state.global_step])
        looks = [self.world.looks(of, self.oversight, at) for of, at in zip(rows, draw.random(count), strict=True)]
        labels = [
            self.world.says(text, of) if looked else None
            for text, of, looked in zip(completions, rows, looks, strict=True)
        ]
        if self.method.labels == "predicted":
            predicted = self._predicted(self.monitor.features(prompts, completion_ids), labels)
            self.right.append(self._quality(predicted, labels, completions, rows))
            labels = predicted
        elif self.method.labels == "shuffled":
            labels = _shuffled(labels, draw)
        elif self.method.labels == "placebo":
            chance = draw.random(count)
            labels = [(HACK if at < 0.5 else FINE) if seen else None for at, seen in zip(chance, looks, strict=True)]
        return [UNSEEN if label is None and solo else label for label in labels]

    def _predicted(self, features: np.ndarray, said: Sequence[str | None]) -> list[str | None]:
        seen = np.array([label is not None for label in said], dtype=bool)
        self.monitor.learn(features[seen], [label for label in said if label is not None])
        predictions = iter(self.monitor.predict(features[~seen]))
        return [label if label is not None else next(predictions) for label in said]

    def _quality(
        self,
        predicted: Sequence[str | None],
        said: Sequence[str | None],
        completions: Sequence[str],
        rows: Sequence[Row],
    ) -> tuple[float, float]:
        """Compare predictions with the truth. This is for the report; nothing learns from it."""
        unseen = [
            (found == HACK, self.world.outcome(text, row) not in (SOLVED, WRONG))
            for found, own, text, row in zip(predicted, said, completions, rows, strict=True)
            if own is None
        ]
        every, hacks = [found == true for found, true in unseen], [found for found, true in unseen if true]
        return (float(np.mean(every)) if every else np.nan, float(np.mean(hacks)) if hacks else np.nan)


def _shuffled(said: Sequence[str | None], draw: np.random.Generator) -> list[str | None]:
    """Return the labels of those that were seen in another order."""
    given = [label for label in said if label is not None]
    mixed = iter([given[i] for i in draw.permutation(len(given))])
    return [None if label is None else next(mixed) for label in said]
