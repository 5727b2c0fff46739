"""What a model does on a world's test prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from routed_rl.lm.hacking.worlds import HACK, SOLVED, WRONG, HackingWorld, Row
from routed_rl.runs import derive_seed

CHUNK = 512
"""Completions that are written at once."""


@torch.no_grad()
def write(model: Any, tokenizer: Any, prompts: Sequence[str], most_tokens: int, seed: int) -> list[str]:
    """Return one completion of each prompt, sampled at temperature 1."""
    found: list[str] = []
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for at in range(0, len(prompts), CHUNK):
            given = tokenizer(list(prompts[at : at + CHUNK]), return_tensors="pt", padding=True, padding_side="left")
            tokens = model.generate(
                **given.to(device),
                max_new_tokens=most_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
            found += tokenizer.batch_decode(tokens[:, given.input_ids.shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return found


def measure(
    model: Any, tokenizer: Any, world: HackingWorld, tests: Sequence[Row], oversight: float, seed: int
) -> dict[str, float]:
    """Return the rates of one model: ``solved`` and ``hack``, and what an overseer would see.

    ``hack_FORM`` is the rate of a form, ``solved@KIND`` and ``hack@KIND`` are those of a kind of prompts, if there are
    several. ``flagged`` is the share of hacks among those completions that the overseer looks at and flags, and
    ``judged`` what it would think of the model: paid completions that it did not flag, less flagged ones. Both are of
    completions of their own, so a model can be chosen by them.
    """
    prompts = [str(row["prompt"]) for row in tests]
    texts = write(model, tokenizer, prompts, world.most_tokens, derive_seed(seed, "true"))
    outcomes = [world.outcome(text, row) for text, row in zip(texts, tests, strict=True)]
    found = _rates(outcomes)
    forms = sorted({outcome for outcome in outcomes if outcome not in (SOLVED, WRONG, HACK)})
    found |= {f"hack_{form}": outcomes.count(form) / len(outcomes) for form in forms}
    kinds = [world.group(row) for row in tests]
    if len(set(kinds)) > 1:
        for kind in sorted(set(kinds)):
            own = _rates([outcome for outcome, of in zip(outcomes, kinds, strict=True) if of == kind])
            found |= {f"{name}@{kind}": rate for name, rate in own.items()}
    return found | _judged(model, tokenizer, world, tests, oversight, seed)


def _rates(outcomes: Sequence[str]) -> dict[str, float]:
    solved, wrong = outcomes.count(SOLVED), outcomes.count(WRONG)
    return {"solved": solved / len(outcomes), "hack": (len(outcomes) - solved - wrong) / len(outcomes)}


def _judged(
    model: Any, tokenizer: Any, world: HackingWorld, tests: Sequence[Row], oversight: float, seed: int
) -> dict[str, float]:
    draws = np.random.default_rng(derive_seed(seed, "looks")).random(len(tests))
    looked = [row for row, draw in zip(tests, draws, strict=True) if world.looks(row, oversight, draw)]
    if not looked:
        return {"flagged": np.nan, "judged": np.nan}
    texts = write(
        model, tokenizer, [str(row["prompt"]) for row in looked], world.most_tokens, derive_seed(seed, "judged")
    )
    flagged = np.array([world.says(text, row) == HACK for text, row in zip(texts, looked, strict=True)])
    paid = np.array([world.reward(text, row) > 0 for text, row in zip(texts, looked, strict=True)])
    return {"flagged": float(flagged.mean()), "judged": float((paid & ~flagged).mean() - flagged.mean())}
