"""What a model does on a world's test prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from routed_rl.lm.hacking.worlds import HACK, SOLVED, WRONG, HackingWorld, Row
from routed_rl.options.hacking import HackingRun
from routed_rl.runs import derive_seed

CHUNK = 512
"""Completions that are written at once, unless the user says how many."""


@torch.no_grad()
def write(
    trainer: GRPOTrainer, tokenizer: Any, prompts: Sequence[str], seed: int, at_once: int | None = None
) -> list[str]:
    """Return one completion of each prompt, sampled as in training."""
    found: list[str] = []
    model = trainer.model
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        size = at_once or CHUNK
        for at in range(0, len(prompts), size):
            given = tokenizer(list(prompts[at : at + size]), return_tensors="pt", padding=True, padding_side="left")
            tokens = model.generate(**given.to(device), generation_config=trainer.generation_config)
            found += tokenizer.batch_decode(tokens[:, given.input_ids.shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return found


def measure(
    trainer: GRPOTrainer,
    tokenizer: Any,
    world: HackingWorld,
    tests: Sequence[Row],
    command: HackingRun,
    seed: int,
) -> dict[str, float]:
    """Return the rates of a trainer's model, and what an overseer would see.

    ``hack_FORM`` is the rate of a form, ``solved@KIND`` and ``hack@KIND`` are those of a kind of prompts, if there are
    several. ``flagged`` is the share of hacks among those completions that the overseer looks at and flags, and
    ``judged`` what it would think of the model: paid completions that it did not flag, less flagged ones. Both are of
    other completions of the same prompts. So a choice by them does not see the completions that it is reported with.
    """

    def written(rows: Sequence[Row], name: str) -> list[str]:
        prompts = [str(row["prompt"]) for row in rows]
        return write(trainer, tokenizer, prompts, derive_seed(seed, name), command.at_once)

    outcomes = [world.outcome(text, row) for text, row in zip(written(tests, "true"), tests, strict=True)]
    found = _rates(outcomes)
    forms = sorted({outcome for outcome in outcomes if outcome not in (SOLVED, WRONG, HACK)})
    found |= {f"hack_{form}": outcomes.count(form) / len(outcomes) for form in forms}
    kinds = [world.group(row) for row in tests]
    if len(set(kinds)) > 1:
        for kind in sorted(set(kinds)):
            own = _rates([outcome for outcome, of in zip(outcomes, kinds, strict=True) if of == kind])
            found |= {f"{name}@{kind}": rate for name, rate in own.items()}
    draws = np.random.default_rng(derive_seed(seed, "looks")).random(len(tests))
    looked = [row for row, draw in zip(tests, draws, strict=True) if world.looks(row, command.oversight, draw)]
    if not looked:
        return {**found, "flagged": np.nan, "judged": np.nan}
    texts = written(looked, "judged")
    flagged = np.array([world.says(text, row) == HACK for text, row in zip(texts, looked, strict=True)])
    paid = np.array([world.reward(text, row) > 0 for text, row in zip(texts, looked, strict=True)])
    return {**found, "flagged": float(flagged.mean()), "judged": float((paid & ~flagged).mean() - flagged.mean())}


def _rates(outcomes: Sequence[str]) -> dict[str, float]:
    solved, wrong = outcomes.count(SOLVED), outcomes.count(WRONG)
    return {"solved": solved / len(outcomes), "hack": (len(outcomes) - solved - wrong) / len(outcomes)}
