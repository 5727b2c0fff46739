"""Replay for routed GRPO: the latest labelled completions, which each update learns to repeat."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routed_rl.runs import read_json, write_json

CAPACITY = 1024
"""Completions of each label that are kept: the latest ones."""
FILE = "labelled_completions.json"
"""Name in a checkpoint."""


class LabelledMemory:
    """The latest labelled completions, by label, each with its prompt and its reward.

    Args:
        labels: those that are kept. Completions with another label are not.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.kept: dict[str, deque[tuple[list[int], list[int], float]]] = {of: deque(maxlen=CAPACITY) for of in labels}

    def add(self, batch: Mapping[str, Tensor], labels: Sequence[str], rewards: Sequence[float]) -> None:
        """Keep the completions of a batch that have a label, and a reward above 0.

        Args:
            batch: TRL's ``prompt_ids``, ``completion_ids`` and their masks, each ``(B, …)``.
            labels: ``B`` labels.
            rewards: ``B`` rewards; NaN is not above 0.

        Raises:
            ValueError: if the batch has images or answers of tools: its completions cannot be learned again.
        """
        if self.kept and (other := {"pixel_values", "tool_mask"}.intersection(batch)):
            kind = "images" if "pixel_values" in other else "answers of tools"
            raise ValueError(f"replay works on text alone, and completions have {kind}: pass replay=0")
        rows = [
            [row[on.bool()].tolist() for row, on in zip(batch[f"{part}_ids"], batch[f"{part}_mask"], strict=True)]
            for part in ("prompt", "completion")
        ]
        for prompt, completion, label, reward in zip(*rows, labels, rewards, strict=True):
            if label in self.kept and reward > 0 and completion:
                self.kept[label].append((prompt, completion, reward))

    def draw(self, label: str, number: int, rng: np.random.Generator, pad: int) -> dict[str, Tensor] | None:
        """Return random completions of a label, drawn with replacement. None: the memory has none of this label.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(number, T)``, prompts padded on the left and completions on the
            right; ``scored`` ``(number, C)``, which of the last ``C`` tokens belong to the completion; and ``rewards``
            ``(number,)``.
        """
        kept = self.kept[label]
        if not kept:
            return None
        rows = [kept[int(place)] for place in rng.integers(len(kept), size=number)]
        before, after = max(len(prompt) for prompt, _, _ in rows), max(len(completion) for _, completion, _ in rows)
        ids = torch.full((number, before + after), pad)
        mask, scored = torch.zeros_like(ids), torch.zeros(number, after)
        for row, (prompt, completion, _) in enumerate(rows):
            span = slice(before - len(prompt), before + len(completion))
            ids[row, span], mask[row, span] = torch.tensor(prompt + completion), 1
            scored[row, : len(completion)] = 1.0
        rewards = torch.tensor([reward for *_, reward in rows])
        return {"input_ids": ids, "attention_mask": mask, "scored": scored, "rewards": rewards}

    def save(self, checkpoint: Path) -> None:
        """Write the memory into the folder of a checkpoint."""
        write_json(checkpoint / FILE, {label: [list(row) for row in rows] for label, rows in self.kept.items()})

    def load(self, checkpoint: Path) -> None:
        """Replace the memory by what :meth:`save` wrote.

        Raises:
            ValueError: if the checkpoint has no such memory, or one of other labels.
        """
        path = checkpoint / FILE
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        if set(found) != set(self.kept):
            had = ", ".join(map(repr, found)) or "nothing"
            raise ValueError(
                f"{str(checkpoint)!r} was saved with a replay of {had}, and now there is one of "
                f"{', '.join(map(repr, self.kept))}: resume with the same replay and replay_table"
            )
        for label, rows in self.kept.items():
            rows.clear()
            rows.extend((prompt, completion, reward) for prompt, completion, reward in found[label])
