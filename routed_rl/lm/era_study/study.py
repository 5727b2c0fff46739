"""A study of Expand-Route-Ablate as an object: methods that remove a topic from a language model, compared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.lm.era_study import report
from routed_rl.lm.era_study.checks import check_options
from routed_rl.lm.era_study.figures import UNLABELLED
from routed_rl.lm.era_study.methods import METHODS
from routed_rl.lm.era_study.pipeline import MODEL, Pipeline, run_config
from routed_rl.lm.inputs import Text, open_text, whole_paths
from routed_rl.lm.own import named
from routed_rl.options.era import PRESETS, EraOptions, TextOptions, Unlearn
from routed_rl.runs.grid import Kind, is_finished, options
from routed_rl.runs.pool import PYTHON
from routed_rl.runs.record import find_run
from routed_rl.runs.studies import Findings, Study, check_study
from routed_rl.wording import shown, written

AFTER = {"rmu": "base", "era+rmu": "era"}
"""Methods that start from the model of another method."""
VARIANTS: Mapping[str, dict[str, Any]] = {
    "era-parameter": {"method": "era", "mode": "parameter"},
    "era-forward": {"method": "era", "mode": "forward", "alpha": 0.0},
    "era-chosen": {"method": "era", "mode": "parameter", "alpha": -0.2},
    "control-chosen": {"method": "control"},
}
"""Variants of methods, by their differences from the paper's form."""
CHOSEN = 4000
"""Default number of documents that the methods "…-chosen" choose for the second repair."""


def _name(run: Unlearn) -> str:
    assert run.out is not None
    return run.out.parent.name


KIND = Kind(
    config=run_config,
    command=lambda batch: [*PYTHON, "routed_rl.lm.era_study.worker", *options(batch[0], Unlearn())],
    total=lambda run: max(run.steps, 1),
    counter="step",
    after=lambda run: [Path(run.model).parent] if _name(run) in AFTER else [],
)


@dataclass(frozen=True, init=False, eq=False)
class EraStudy(EraOptions, Study):
    """Methods that remove a topic from a language model, compared over shares of labels and seeds, and attacked.

    >>> study = EraStudy(corpus=texts, words=["bank"], methods=["base", "era"], seeds=1)  # doctest: +SKIP
    >>> study.run("runs/bank")  # doctest: +SKIP

    Every field of :class:`~routed_rl.options.era.EraOptions`, that is every option of ``routed-rl era``, is an argument
    with the same name and default. A study of this class and a command with the same options share their directory and
    their bytes.

    Args:
        preset: name of a preset, which sets the defaults of the other options.
        **given: the other options. ``corpus`` and ``forget`` may be lists of strings, or datasets with a column
            ``text``. ``model`` may be a Hugging Face causal language model, with its ``tokenizer``.

    Models and texts that are objects are saved in the folder ``corpora`` first; the study's processes read them there.

    Raises:
        TypeError: for an argument that is not an option.
        UserError: for texts or a model that cannot be saved.
    """

    KIND = KIND
    TITLE = "Study of Expand-Route-Ablate"
    FIGURES = ("unlearning", "relearning", "tokens")

    def __init__(self, *, preset: str = "stories", **given: Any):
        usual = dict(PRESETS).get(preset, {})  # type: ignore[call-overload]
        EraOptions.__init__(self, **named(EraOptions, usual, {**given, "preset": preset}))
        for name, value in {**whole_paths(self), "out": Path(os.path.abspath(self.out))}.items():
            object.__setattr__(self, name, value)

    def plan(self) -> pd.DataFrame:
        """Return what ``run`` would do, without doing it.

        Returns:
            A row per model, with ``run``, its directory below ``out``; ``method``; ``labelled``; ``seed``; and
            ``reason``, why it would run, or "is finished".

        Raises:
            UserError: for options, a model or texts that the study cannot use.
        """
        with user_input():
            runs = self._prepare(True)
            check_study(self.out, self._identity())
        rows = [
            (run.out.relative_to(self.out).as_posix(), _name(run), run.labelled, run.seed, _reason(run.out))
            for run in runs
            if run.out is not None
        ]
        return pd.DataFrame(rows, columns=["run", "method", "labelled", "seed", "reason"])

    @cached_property
    def text(self) -> Text:
        """The tokenised corpus and its tokenizer."""
        with user_input():
            return open_text(self)

    def _identity(self) -> Mapping[str, Any]:
        """The options that all runs share. Methods, shares of labels and seeds may be added later."""
        run = Unlearn(**{field.name: getattr(self, field.name) for field in fields(TextOptions)})
        shared = {name: value for name, value in run_config(run).items() if name not in ("method", "labelled")}
        return {**shared, "text": self.text.digest}

    def _prepare(self, here: bool) -> Sequence[Unlearn]:
        self._check()
        check_options(self)
        runs = self._grid()
        if not all(is_finished(run.out) for run in runs if run.out is not None):
            _check_runs(runs, self.model, self.text)
        return runs

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs. None: no run is finished."""
        return report.find(self, failed or {})

    def _failure(self, failed: Mapping[Path, str], runs: Sequence[Unlearn]) -> str:
        return f"{len(failed)} runs failed; the finished runs are in {self.out / 'results.csv'}"

    def _check(self) -> None:
        at_least(1, seeds=self.seeds)
        for name, given in (("methods", self.methods), ("labelled", self.labelled)):
            if not given or len(set(given)) < len(given):
                raise UserError(f"--{name} must be one or more different values, got {shown(given)}")
        if bad := [share for share in self.labelled if not 0 <= share <= 1]:
            raise UserError(f"--labelled must be between 0 and 1, got {bad[0]}")
        for name in ("filtering", "rmu"):
            if name in self.methods and "base" not in self.methods:
                raise UserError(f"{written('--methods', name)} is compared with base: add base")
        for name, parent in AFTER.items():
            if name in self.methods and parent not in self.methods:
                raise UserError(f"{written('--methods', name)} starts from the models of {parent}: add {parent}")
            if name in self.methods and not max(self.labelled):
                raise UserError(
                    f"{written('--methods', name)} needs labelled documents, got "
                    f"{written('--labelled', max(self.labelled))}"
                )

    def _grid(self) -> list[Unlearn]:
        """All runs: every method at every share of labels, in ``runs/METHOD/SHARE-sSEED``."""
        common = {field.name: getattr(self, field.name) for field in fields(TextOptions)}
        most = max(self.labelled)
        grid = []
        for seed in range(self.seeds):
            for method in self.methods:
                for share in _shares(method, self.labelled):
                    given: dict[str, Any] = {"method": method, "seed": seed, "labelled": share, "preset": self.preset}
                    given |= VARIANTS.get(method, {})
                    if method.endswith("-chosen"):
                        given["repair"] = replace(self.repair, chosen=self.repair.chosen or CHOSEN)
                    if method in AFTER:
                        parent = AFTER[method]
                        model = _out(self.out, parent, most if parent in UNLABELLED else share, seed) / MODEL
                        given |= {"method": "rmu", "model": str(model), "steps": 0}
                    grid.append(Unlearn(**common | given, out=_out(self.out, method, share, seed)))
        return grid


def _shares(method: str, labelled: Sequence[float]) -> list[float]:
    if method in UNLABELLED or method == "era+rmu":
        return [max(labelled)]
    return [share for share in labelled if share > 0 or not METHODS.get(method, METHODS["era"]).misdirects]


def _out(out: Path, method: str, share: float, seed: int) -> Path:
    return out / "runs" / method / f"{share!r}-s{seed}"


def _reason(out: Path) -> str:
    """Why a run would be done, or "is finished"."""
    if is_finished(out):
        return "is finished"
    return "was interrupted" if find_run(out) is not None else "is new"


def _check_runs(grid: Sequence[Unlearn], model: str, text: Text) -> None:
    """Raise ValueError or OSError if one of the runs cannot be done.

    A method that starts from another method's model is checked with that model before its training.
    """
    made = set()
    for run in grid:
        pipeline = Pipeline(replace(run, model=model), text)
        kind = (run.method, run.mode, run.repair)
        if kind not in made:
            made.add(kind)
            pipeline.check()
