"""Find settings of a suppression method that suit the user's own model, on a part of the data that is not reported."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from routed_rl.lm.batches import WholeDocuments
from routed_rl.lm.corpora import Corpus
from routed_rl.lm.losses import evaluate
from routed_rl.lm.suppressors import Suppressor
from routed_rl.lm.texts import Texts, text_corpus
from routed_rl.lm.training import Training
from routed_rl.runs import derive_seed
from routed_rl.runs.progress import progress_bar
from routed_rl.unlearning.guard import performance_left
from routed_rl.unlearning.methods import Method, made_method
from routed_rl.unlearning.pipeline import unlearn

TUNED, HELD_OUT = 0.5, 0.2
"""Share of both sets on which settings are tried, and share of its retain documents that trials do not train on."""
MOST = 2000
"""Documents of each set on which settings are tried, at most."""
FACTORS = {"learning_rate": (0.3, 1.0, 3.0), "steps": (1, 3, 7), "retain_weight": (1.0, 3.0, 10.0)}
"""Factors on the defaults of a method that are tried, where the method has the setting."""


@dataclass(frozen=True)
class Tuned:
    """The settings that :func:`tune` found.

    Attributes:
        method: the suppression method, as it was given.
        settings: keywords for :func:`unlearn`, the fixed ones included.
        kept: whether they keep the retain performance.
        trials: a row per trial, the best first: its settings, the shares ``forget_left`` and ``retain_left`` of the
            performance before, the losses ``forget_loss`` and ``retain_loss``, whether it is ``kept``, and its ``cost``
            in gradient steps. A trial that diverged has NaN. Trials that differ in their number of steps alone are one
            training, measured on the way, so later ones cost what they add.
        documents: the forget and retain documents of the trials, by their numbers in the order of ``forget`` and
            ``retain``. Report results on other documents.
    """

    method: Method
    settings: dict[str, Any]
    kept: bool
    trials: pd.DataFrame
    documents: Mapping[str, tuple[int, ...]]

    @property
    def options(self) -> list[str]:
        """The settings as values of ``settings`` of a study, or of ``--settings``: ``npo.steps=200``, …"""
        suppressor, method = made_method(self.method)
        usual = type(suppressor)()
        own = {field.name: getattr(suppressor, field.name) for field in fields(suppressor)}
        given = {name: value for name, value in own.items() if value != getattr(usual, name)}
        given |= {name: of for name, of in self.settings.items() if name in ("learning_rate", "steps", *own)}
        return [f"{method}.{name}={value}" for name, value in given.items()]


def tune(
    model: nn.Module,
    tokenizer: Any,
    forget: Texts,
    retain: Texts,
    method: Method = "npo",
    *,
    keep: float = 0.9,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
    progress: bool = True,
    **fixed: Any,
) -> Tuned:
    """Try settings of a suppression method, and return those that forget most and keep the retain performance.

    Each trial unlearns half of the forget set with half of the retain set, at most 2,000 documents of each. It is
    measured on these forget documents, and on a fifth of these retain documents, which it did not train on. What is
    left of a performance is 1 for a loss as before, and 0 for the loss of uniform guesses.

    >>> tuned = tune(model, tokenizer, forget, retain, method="maxent")  # doctest: +SKIP
    >>> unlearned = unlearn(model, tokenizer, forget, retain, tuned.method, **tuned.settings)  # doctest: +SKIP

    Args:
        model, tokenizer, forget, retain, method, seed: as for :func:`unlearn`.
        keep: share of the retain performance that must be left.
        grid: values to try, by setting. None: the method's default learning rate times 0.3, 1 and 3, its steps times 1,
            3 and 7, and its retain weight times 1, 3 and 10.
        progress: show a progress bar on standard error.
        **fixed: further keywords for :func:`unlearn`, the same in all trials.

    Warns:
        UserWarning: if no trial keeps enough. Then the one that keeps most is returned.

    Raises:
        ValueError: as :func:`unlearn`, or for a grid without values, or fewer than four documents in a set.
    """
    suppressor, called = made_method(method)
    usual = {name: of for name, of in _usual(suppressor).items() if name not in fixed}
    values = usual if grid is None else {name: list(of) for name, of in grid.items()}
    if both := sorted({*values} & {*fixed}):
        raise ValueError(f"{both[0]} is in the grid and also fixed: give one of them")
    if not values or not all(values.values()):
        raise ValueError(f"grid must have one or more values for each setting, got {grid}")
    if lone := [name for name, of in (("forget", forget), ("retain", retain)) if isinstance(of, str)]:
        raise ValueError(f"{lone[0]} must be a list of documents, got one string")
    sets: dict[str, list[Any]] = {"forget": list(forget), "retain": list(retain)}
    chosen = {name: some(len(of), TUNED, derive_seed(seed, "tune", name)) for name, of in sets.items()}
    tried = {name: [sets[name][i] for i in numbers] for name, numbers in chosen.items()}
    apart = math.ceil(HELD_OUT * len(tried["retain"]))
    allow = bool(fixed.get("allow_overlap"))
    corpus = text_corpus(tokenizer, tried["forget"], tried["retain"][:apart], allow)
    own: dict[str, Any] = {}
    answers = fixed.get("alternatives")
    if isinstance(answers, Sequence) and len(answers) == len(sets["forget"]):  # one for each document
        own["alternatives"] = [answers[i] for i in chosen["forget"]]
    combinations = [dict(zip(values, of, strict=True)) for of in itertools.product(*values.values())]
    usual_steps = int(fixed.get("steps", suppressor.recipe.steps))
    trainings = together(combinations, usual_steps, suppressor.recipe)

    def trial(settings: Mapping[str, Any], steps: Sequence[int]) -> dict[int, dict[str, float]]:
        """Return the losses after each number of steps; those after it diverged are left out."""
        found: dict[int, dict[str, float]] = {}

        def look(done: int, unlearned: nn.Module) -> None:
            if done in steps:
                found[done] = _losses(unlearned, corpus)

        given = {**fixed, **settings, "steps": max(steps), **own}
        with suppress(FloatingPointError):
            trained = tried["forget"], tried["retain"][apart:]
            unlearn(model, tokenizer, *trained, method, seed=seed, progress=False, callback=look, **given)
        tick()
        return found

    with progress_bar(f"tune, {called}", len(trainings), progress) as tick:
        frame, best = sweep(trainings, trial, _losses(model, corpus), math.log(len(tokenizer)), keep)
    best = {name: best[name] for name in values}
    first = frame.iloc[0]
    if not first.kept:
        warnings.warn(
            f"no setting of {called} keeps {keep:.0%} of the retain performance; the best one keeps "
            f"{first.retain_left:.0%}: try a wider grid or another method",
            stacklevel=2,
        )
    return Tuned(method, {**fixed, **best}, bool(first.kept), frame, chosen)


def together(
    combinations: Sequence[Mapping[str, Any]], usual: int, recipe: Training
) -> list[tuple[dict[str, Any], list[int]]]:
    """Return the trainings that try all combinations of settings: each with its settings, and numbers of steps.

    If the learning rate is constant, the first steps of a longer training are a shorter one.

    Args:
        usual: number of steps of combinations without one.
        recipe: the training settings of the method.
    """
    found: list[tuple[dict[str, Any], list[int]]] = []
    for combination in combinations:
        settings = {name: value for name, value in combination.items() if name != "steps"}
        steps = combination.get("steps", usual)
        same = next((of for those, of in found if those == settings), None)
        if same is not None and recipe.warmup == 0 and recipe.final == 1:
            same.append(steps)
        else:
            found.append((settings, [steps]))
    return found


def sweep(
    trainings: Sequence[tuple[Mapping[str, Any], Sequence[int]]],
    trial: Callable[[Mapping[str, Any], Sequence[int]], Mapping[int, Mapping[str, float]]],
    before: Mapping[str, float],
    ignorance: float,
    keep: float,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Try settings, and return a row per trial, the best first, as :attr:`Tuned.trials`; and the best settings.

    Args:
        trainings: as from :func:`together`.
        trial: returns the losses of "forget" and "retain" after each number of steps. Those after it diverged are left
            out.
        before: the losses before.
        ignorance: the loss of uniform guesses.
        keep: share of the retain performance that must be left.
    """
    tried: list[dict[str, Any]] = []
    measured = []
    for settings, steps in trainings:
        found, since = trial(settings, steps), 0
        for count in sorted(steps):
            losses = {f"{name}_loss": found.get(count, {}).get(name, math.nan) for name in before}
            measured.append({"cost": count - since, **losses})
            tried.append({**settings, "steps": count})
            since = count
    frame = pd.concat([pd.DataFrame(tried), pd.DataFrame(measured)], axis=1)
    for name, value in before.items():
        frame[f"{name}_left"] = performance_left(value, frame[f"{name}_loss"], ignorance)
    frame["kept"] = frame.retain_left >= keep
    # Of trials that keep enough, the best one forgets most; of others, it keeps most. Below 0, a loss is above that of
    # uniform guesses, and there is nothing more to forget.
    order = frame.forget_left.clip(lower=0.0).where(frame.kept, -frame.retain_left)
    frame = frame.iloc[np.lexsort((-frame.retain_left, order, ~frame.kept))]
    return frame.reset_index(drop=True), tried[int(frame.index[0])]


def around(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values that are tried for those of the settings that have :data:`FACTORS`."""
    tried = {name: [factor * settings[name] for factor in FACTORS[name]] for name in FACTORS if name in settings}
    return {name: [max(round(step), 1) for step in of] if name == "steps" else of for name, of in tried.items()}


def _usual(suppressor: Suppressor) -> dict[str, list[Any]]:
    recipe = suppressor.recipe
    return around({"learning_rate": recipe.learning_rate, "steps": recipe.steps} | vars(suppressor))


def some(count: int, share: float, seed: int) -> tuple[int, ...]:
    """Numbers of some documents, in a random order."""
    if count < 4:
        raise ValueError(f"tuning needs at least four documents in each set, got {count}")
    order = np.random.default_rng(seed).permutation(count)
    return tuple(int(number) for number in order[: min(max(2, round(share * count)), MOST)])


def _losses(model: nn.Module, corpus: Corpus) -> dict[str, float]:
    documents = {name: corpus.documents("train", name) for name in ("forget", "retain")}  # type: ignore[arg-type]
    return {name: evaluate(model, WholeDocuments(corpus, of)).mean() for name, of in documents.items()}
