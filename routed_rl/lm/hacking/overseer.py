"""Who sees which completion and says what of it, and a monitor that learns from what was said.

``B`` completions, ``D`` width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routed_rl.lm.adapters import Adapters
from routed_rl.lm.hacking.methods import UNSEEN, Method
from routed_rl.lm.hacking.worlds import FINE, HACK, SOLVED, WRONG, HackingWorld
from routed_rl.runs import derive_seed

REMEMBERED = 1024
"""Labelled completions from which a monitor learns: the latest ones."""


class Monitor:
    """Predicts what an overseer would say of a completion, by ridge regression that is fitted anew in each update.

    It sees hidden states of the model without adapters, so training cannot change what it sees.
    """

    def __init__(self, adapters: Adapters, tokenizer: Any) -> None:
        self._adapters, self._tokenizer = adapters, tokenizer
        self.seen: list[np.ndarray] = []
        self.said: list[str] = []

    @torch.no_grad()
    def features(self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return ``(B, 2 D)``: the last layer's state at the last token, and its mean over the completion."""
        rows = [[*self._tokenizer(prompt).input_ids, *ids] for prompt, ids in zip(prompts, completion_ids, strict=True)]
        longest = max(map(len, rows))
        device = next(self._adapters.model.parameters()).device
        pad = self._tokenizer.pad_token_id
        tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
        places = torch.arange(longest, device=device)
        begin = longest - torch.tensor([len(row) for row in rows], device=device)[:, None]
        of_completion = longest - torch.tensor([max(len(ids), 1) for ids in completion_ids], device=device)[:, None]
        with self._adapters.model.disable_adapter():
            body = self._adapters.model.get_base_model().base_model
            states: Tensor = body(input_ids=tokens, attention_mask=(places >= begin).long()).last_hidden_state
        counted = (places >= of_completion)[..., None].to(states.dtype)
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
    """The overseer of :class:`~routed_rl.lm.grpo.RoutedGRPOTrainer` for a method and a world.

    Attributes:
        right: for each update, the shares of unseen completions, of all and of hacks only, that the monitor judges
            rightly; NaN for an update without any.
    """

    def __init__(self, world: HackingWorld, method: Method, oversight: float, seed: int, monitor: Monitor) -> None:
        self.world, self.method, self.oversight, self.seed, self.monitor = world, method, oversight, seed, monitor
        self.right: list[tuple[float, float]] = []

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any,
        solo: bool,
        **columns: Sequence[Any],
    ) -> list[str | None]:
        count = len(completions)
        rows: list[Mapping[str, Any]] = [
            {"prompt": prompts[i], **{name: values[i] for name, values in columns.items() if _is_column(values, count)}}
            for i in range(count)
        ]
        draw = np.random.default_rng([derive_seed(self.seed, "hacking", "overseer"), trainer_state.global_step])
        looks = [self.world.looks(row, self.oversight, at) for row, at in zip(rows, draw.random(count), strict=True)]
        said = [
            self.world.says(text, row) if looked else None
            for text, row, looked in zip(completions, rows, looks, strict=True)
        ]
        truth = [
            FINE if self.world.outcome(text, row) in (SOLVED, WRONG) else HACK
            for text, row in zip(completions, rows, strict=True)
        ]
        labels = said
        if self.method.labels == "true":
            labels = [*truth]
        elif self.method.labels == "predicted":
            labels = self._predicted(prompts, completion_ids, said, truth)
        elif self.method.labels == "shuffled":
            labels = _shuffled(said, draw)
        elif self.method.labels == "placebo":
            random = draw.random(count)
            labels = [(HACK if at < 0.5 else FINE) if seen else None for at, seen in zip(random, looks, strict=True)]
        return [UNSEEN if label is None and solo else label for label in labels]

    def _predicted(
        self,
        prompts: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        said: Sequence[str | None],
        truth: Sequence[str],
    ) -> list[str | None]:
        features = self.monitor.features(prompts, completion_ids)
        seen = np.array([label is not None for label in said], dtype=bool)
        self.monitor.learn(features[seen], [label for label in said if label is not None])
        predictions = iter(self.monitor.predict(features[~seen]))
        found = [label if label is not None else next(predictions) for label in said]
        unseen = [
            (label == HACK) == (true == HACK) for label, true, was in zip(found, truth, seen, strict=True) if not was
        ]
        hacks = [label == HACK for label, true, was in zip(found, truth, seen, strict=True) if not was and true == HACK]
        self.right.append(tuple(float(np.mean(of)) if of else np.nan for of in (unseen, hacks)))  # type: ignore[arg-type]
        return found


def _is_column(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count


def _shuffled(said: Sequence[str | None], draw: np.random.Generator) -> list[str | None]:
    """Return the labels of those that were seen in another order."""
    given = [label for label in said if label is not None]
    mixed = iter([given[i] for i in draw.permutation(len(given))])
    return [None if label is None else next(mixed) for label in said]
