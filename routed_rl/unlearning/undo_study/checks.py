"""Checks of the options of an UNDO study, before anything is run."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.lm import PRESETS
from routed_rl.lm.alternatives import check_pairs
from routed_rl.lm.inputs import check_corpus_options
from routed_rl.options.undo import TASKS, UndoOptions
from routed_rl.runs.files import plain_json
from routed_rl.unlearning.attacks import Attack, Relearning
from routed_rl.unlearning.undo_study.domains import Domains
from routed_rl.unlearning.undo_study.measuring import ATTACKS, METRICS, make_attack
from routed_rl.unlearning.undo_study.members import TRAIN, make_suppressor, named_suppressors, stop_metric
from routed_rl.wording import shown, written

STRONGEST = 1000
"""Largest factor on a suppressor's number of steps; a larger one is a slip."""


def check_options(command: UndoOptions) -> None:
    """Raise UserError for the first option with a value that no study can use."""
    if (command.task, command.preset) not in TASKS:
        there = next(preset for task, preset in TASKS if task == command.task)
        task, preset = written("--task", command.task), written("--preset", command.preset)
        raise UserError(f"{task} has no {preset}: use {written('--preset', there)}")
    check_corpus_options(command)
    pretrain, distilling, relearning = command.pretrain, command.distil, command.relearn
    rows = {"batch_size": command.batch_size, "suppress_rows": command.suppress_rows}
    at_least(1, seeds=command.seeds, **rows)
    at_least(1, answer=command.answer)
    at_least(1, **{"distil.every": distilling.every, "relearn.steps": relearning.steps})
    at_least(1, **{"relearn.batch-size": relearning.batch_size})
    if command.rank is not None:
        at_least(1, rank=command.rank)
        if "new" in command.students or command.oracle:
            raise UserError(f"--rank trains adapters on a trained model: leave out {_new()} and --oracle")
    counts = {"relearn.examples": relearning.examples, "relearn.rank": relearning.rank}
    counts |= {"lm-eval.limit": command.lm_eval.limit}
    at_least(1, **{name: count for name, count in counts.items() if count is not None})
    at_least(
        0, **{"pretrain.steps": pretrain.steps, "pretrain.warmup": pretrain.warmup, "first-seed": command.first_seed}
    )
    at_least(0, **{f"distil.{name}": getattr(distilling, name) for name in ("steps", "warmup", "least")})
    if command.tokens or command.per != "document":
        per = written("--per", "token")
        raise UserError(f"undo forgets whole documents, not tokens in them: leave out --tokens and {per}")
    at_least(1, processes=command.processes)
    if command.batch_size % (command.processes * command.accumulate):
        many = f"{written('--processes', command.processes)} times " if command.processes > 1 else ""
        many += written("--accumulate", command.accumulate)
        raise UserError(
            f"{written('--batch-size', command.batch_size)} cannot be divided into {many} equal "
            "parts: choose a multiple"
        )
    shared = {"--suppress-rows": 2 * command.suppress_rows, "--relearn.batch-size": relearning.batch_size}
    for name, count in shared.items():
        if count % command.processes:
            raise UserError(
                f"{name}: {count} rows of a step cannot be divided among {written('--processes', command.processes)}"
            )
    for name in ("metric", "attack", "suppress", "labelled", "strengths", "students", "alphas", "betas"):
        given = getattr(command, name)
        if not given and name not in ("strengths", "students"):
            raise UserError(f"--{name} must be one or more values, got none")
        if len(set(given)) < len(given):
            raise UserError(f"--{name} must be different values, got {shown(given)}")
    if bad := [alpha for alpha in command.alphas if not 0 <= alpha <= 1]:
        raise UserError(f"--alphas must be between 0 and 1, got {bad[0]}")
    if bad := [share for share in command.labelled if not 0 < share <= 1]:
        raise UserError(f"--labelled must be above 0 and at most 1, got {bad[0]}")
    if bad := [strength for strength in command.strengths if not 0 < strength <= STRONGEST]:
        raise UserError(f"--strengths must be above 0 and at most {STRONGEST}, got {bad[0]}")
    if not 0 < command.localised <= 1:
        raise UserError(f"--localised must be above 0 and at most 1, got {command.localised}")
    numbers = {
        "betas": command.betas,
        "pretrain.learning-rate": [pretrain.learning_rate],
    }
    numbers |= {"pretrain.weight-decay": [pretrain.weight_decay], "distil.learning-rate": [distilling.learning_rate]}
    numbers |= {"distil.within": [distilling.within or 0], "distil.hidden-weight": [distilling.hidden_weight]}
    for name, values in numbers.items():
        if bad := [value for value in values if not 0 <= value < math.inf]:
            raise UserError(f"--{name.replace('_', '-')} must be 0 or more, got {bad[0]}")
    if not relearning.learning_rates or not all(0 < rate < math.inf for rate in relearning.learning_rates):
        given = shown(relearning.learning_rates)
        raise UserError(f"--relearn.learning-rates must be one or more numbers above 0, got {given}")
    if not relearning.measured or not 0 < min(relearning.measured) <= max(relearning.measured) <= relearning.steps:
        given = shown(relearning.measured)
        raise UserError(
            f"--relearn.measured must be steps from 1 to {written('--relearn.steps', relearning.steps)}, got {given}"
        )
    at_least(1, **{"distil.documents": distilling.documents})
    if not 0 <= relearning.keep_gb < math.inf:
        raise UserError(f"--relearn.keep-gb must be 0 or more, got {relearning.keep_gb}")
    if not 0 <= relearning.retain_share <= 1:
        raise UserError(f"--relearn.retain-share must be between 0 and 1, got {relearning.retain_share}")
    is_new = command.filtered == TRAIN or command.oracle or "new" in command.students
    if command.model not in PRESETS and is_new:
        raise UserError(
            f"{written('--model', command.model)} is pretrained, and a filtered or new model needs a preset: use "
            f"{written('--filtered', None)} or a model from elsewhere, and leave out {_new()} and --oracle"
        )
    if command.tune is not None and not 0 < command.tune <= 1:
        raise UserError(f"--tune must be above 0 and at most 1, got {command.tune}")
    if command.filtered_tokens is not None:
        at_least(1, filtered_tokens=command.filtered_tokens)
        if command.filtered in (None, TRAIN):
            raise UserError("--filtered-tokens needs a --filtered model from elsewhere: give its folder or name")
    include = command.lm_eval.include
    if include is not None and not include.is_dir():
        raise UserError(f"--lm-eval.include {str(include)!r} is not a folder")
    if command.oracle and command.filtered is None:
        raise UserError(f"--oracle needs the filtered model: leave out {written('--filtered', None)}")
    if command.model in PRESETS and not pretrain.steps:
        raise UserError(
            f"{written('--pretrain.steps', 0)} leaves the new model {command.model} untrained: use a pretrained --model"
        )


def check_alternatives(command: UndoOptions, domains: Domains, documents: np.ndarray, seed: int) -> None:
    """Raise ValueError if a method that teaches another answer cannot be used on these forget documents."""
    for name, found in named_suppressors(command).items():
        method, _ = make_suppressor(command.settings, found.reference)
        if method.alternatives is not None:
            check_pairs("--suppress-rows", command.suppress_rows, command.processes)
            others = domains.alternatives(name, method.alternatives, documents, seed)
            others.check(domains.corpus, documents, command.length)


def _new() -> str:
    return written("--students", ("new",))


def check_plugins(command: UndoOptions) -> None:
    """Raise UserError for the first suppressor, metric or attack that is not found or cannot be used."""
    with user_input():
        found = METRICS.find_all(command.metric, "--metric")
        metrics = [metric.reference for metric in found.values()]
        attacks = ATTACKS.find_all(command.attack, "--attack")
        for name in found.keys() & attacks.keys():  # both begin columns
            raise UserError(f"a --metric and an --attack are both called {name!r}: rename one of them")
        for name, attack in attacks.items():
            _check_attack(name, make_attack(command, attack.reference))
        stop = stop_metric(command) if metrics else ""
    if stop not in metrics and metrics:
        raise UserError(
            f"{written('--distil.metric', command.distil.metric)} must be one of "
            f"{written('--metric', command.metric)}, so that students are compared by it"
        )
    with user_input():
        for name, method in named_suppressors(command).items():
            suppressor, _ = make_suppressor(command.settings, method.reference)
            try:
                plain_json(asdict(suppressor), f"a setting of {name}")
            except TypeError as error:
                raise UserError(
                    f"{written('--suppress', method.reference)}: {error}, so a study cannot save it"
                ) from None


def _check_attack(name: str, attack: Attack) -> None:
    """Raise UserError for an attack of the user's own that no study can use. :func:`check_options` checks ours."""
    if isinstance(attack, Relearning):
        return
    for attribute in ("attempts", "steps", "measured"):
        if not getattr(attack, attribute, None):
            raise UserError(
                f"{written('--attack', name)}: the attribute {attribute!r} of the class is missing or empty"
            )
    if not 0 < min(attack.measured) <= max(attack.measured) <= attack.steps:
        given = shown(attack.measured)
        raise UserError(
            f"{written('--attack', name)}: measured must be steps from 1 to steps = {attack.steps}, got {given}"
        )
