"""The unlearning arena as an object: methods × what follows × attacks on a benchmark. Only what has changed is run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from routed_rl.errors import user_input
from routed_rl.lm.folders import CONFIG, check_folder, outline
from routed_rl.lm.own import saved_model
from routed_rl.options import RUNS
from routed_rl.options.arena import ArenaOptions
from routed_rl.options.conform import conform
from routed_rl.runs import Stage, with_ancestors
from routed_rl.runs.files import StrPath
from routed_rl.runs.grid import STAGES, Kind, is_finished, options
from routed_rl.runs.pool import PYTHON
from routed_rl.runs.stages import stage_table
from routed_rl.runs.studies import LEADERBOARD, LEADERBOARD_PAGE, Findings, Study, check_study, refuse_unknown
from routed_rl.unlearning.arena import report
from routed_rl.unlearning.arena.entries import ATTACK, MAKE, SEED, Arena, Entry
from routed_rl.unlearning.arena.exporting import export
from routed_rl.unlearning.arena.figures import FIGURES
from routed_rl.wording import did_you_mean


@dataclass(frozen=True)
class StageRun:
    """A stage as one run of the study."""

    stage: Stage
    options: ArenaOptions
    out: Path
    seed: int
    force: bool = False


def _command(batch: Sequence[StageRun]) -> list[str]:
    only = ("--only", *(run.out.name for run in batch))
    return [*PYTHON, "routed_rl.unlearning.arena.worker", *only, *options(batch[0].options, ArenaOptions())]


def _together(runs: list[StageRun]) -> list[list[StageRun]]:
    """Group stages into commands: each model by itself, and all scores of a model and attacks on it.

    A score or an attack of the user's own has a command of its own. If it fails, what depends on others still runs.
    """
    found: dict[tuple[str, bool, str], list[StageRun]] = {}
    for run in runs:
        stage, is_model = run.stage, run.stage.kind in MAKE
        named = str(stage.config.get("score") or stage.config.get("attack") or "")
        own = named if stage.config.get("code") and not is_model else ""
        found.setdefault(((stage if is_model else stage.parents["model"]).key, is_model, own), []).append(run)
    return list(found.values())


@dataclass(frozen=True, init=False, eq=False)
class ArenaStudy(ArenaOptions, Study):
    """Unlearning methods on a benchmark, each alone and with UNDO, each under attack, in one table.

    >>> study = ArenaStudy(benchmark="tofu-small", methods=["npo", "rmu"], seeds=3)  # doctest: +SKIP
    >>> study.run("runs/arena")  # doctest: +SKIP
    >>> study.figure("arrows")  # doctest: +SKIP

    Every field of :class:`~routed_rl.options.arena.ArenaOptions`, that is every option of ``routed-rl arena``, is an
    argument with the same name and default. A study of this class and a command with the same options share their
    directory and their bytes.

    Args:
        tokenizer: of ``model`` and ``retrained``, where these are objects. They are saved below ``runs/corpora`` first.
        **given: the options. ``model`` and ``retrained`` may be Hugging Face causal language models.

    Raises:
        TypeError: for an argument that is not an option.
        UserError: for an option of another type, or a model that cannot be saved.
    """

    out: Path = RUNS
    KIND = Kind(
        config=lambda run: run.stage.record.config,
        command=_command,
        total=lambda run: 0,
        counter="step",
        batches=_together,
        after=lambda run: [stage.path(run.out.parent) for stage in run.stage.parents.values()],
    )
    TITLE = "Unlearning arena"
    SUMMARY, REPORT = LEADERBOARD, LEADERBOARD_PAGE
    FILES = ("leaderboard.csv", "leaderboard.tex", "trust.csv")
    FIGURES = FIGURES

    def __init__(self, *, tokenizer: Any = None, **given: Any) -> None:
        values = vars(ArenaOptions())
        refuse_unknown(ArenaOptions, given, values)
        with user_input():
            for name in ("model", "retrained"):
                if isinstance(given.get(name), nn.Module):
                    given[name] = saved_model(given[name], tokenizer, Path(os.path.abspath(RUNS / "corpora")))
        values = conform(ArenaOptions, {**values, **given})
        values["out"] = Path(os.path.abspath(values["out"] or RUNS / f"arena-{values['benchmark'].split(':')[-1]}"))
        for name in ("model", "retrained", "data"):
            there = values[name] and (name == "data" or Path(values[name].replace("{seed}", "0"), CONFIG).exists())
            if there and Path(values[name].replace("{seed}", "0")).exists():
                values[name] = os.path.abspath(values[name])
        ArenaOptions.__init__(self, **values)

    def plan(self) -> pd.DataFrame:
        """Return what ``run`` would do, without doing it.

        Returns:
            A row per stage, with ``stage``, its directory's name; ``model``; ``seed``; ``trains``, whether it trains or
            attacks a model; ``reason``, why it would run, or "is finished".

        Raises:
            UserError: for options, a model or data that the study cannot use.
        """
        with user_input():
            runs = self._prepare(True)
            check_study(self.out, self._identity())
        names = {stage.key: entry.name for entry in reversed(self.entries) for stage in with_ancestors([entry.stage])}
        names |= {stage.key: entry.name for entry in reversed(self.entries) for stage in entry}
        return stage_table([run.stage for run in runs], self.root, names, (*MAKE, ATTACK))

    def save(self, name: str, folder: StrPath, seed: int | None = None) -> Path:
        """Save a model in a folder, with a model card and its scores, and return the folder.

        ``huggingface_hub.upload_folder`` or ``hf upload REPOSITORY FOLDER`` then shares it. See
        :func:`~routed_rl.unlearning.arena.exporting.export`.

        Args:
            name: the model's name in the leaderboard, such as ``"npo + UNDO α 0.6"``.
            folder: what is there is replaced.
            seed: None: the first one.

        Raises:
            UserError: for a model that is not in the study, or has not been made.
        """
        seed = self.first_seed if seed is None else seed
        with user_input():
            found = [entry for entry in self.entries if entry.seed == seed]
            names = [entry.name for entry in found]
            if name not in names:
                known = ", ".join(names) or f"none of seed {seed}"
                raise ValueError(f"there is no model {name!r}; there are {known}{did_you_mean(name, names)}")
            measured = self.find()
            results = pd.DataFrame(columns=[*report.MEANINGS]) if measured is None else measured.results
            return export(self.arena, self.root, results, found[names.index(name)], folder)

    @property
    def root(self) -> Path:
        """The directory of all stages."""
        return self.out / STAGES

    @cached_property
    def arena(self) -> Arena:
        """What the options name."""
        with user_input():
            return Arena(self)

    @cached_property
    def entries(self) -> list[Entry]:
        """All models of the study."""
        with user_input():
            return self.arena.entries()

    def _identity(self) -> Mapping[str, Any]:
        return {"benchmark": self.benchmark, "split": self.split, "device": self.device}

    def _prepare(self, here: bool) -> Sequence[StageRun]:
        for name in (self.model, self.retrained):
            for seed in {entry.seed for entry in self.entries} if name is not None else ():
                folder = str(name).replace(SEED, str(seed))
                if Path(folder).is_dir():
                    check_folder(folder)
                outline(folder)
        given = ArenaOptions(**{field.name: getattr(self, field.name) for field in fields(ArenaOptions)})
        stages = with_ancestors(stage for entry in self.entries for stage in entry)
        return [StageRun(stage, given, stage.path(self.root), stage.seed) for stage in stages]

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished models. None: no model is finished."""
        return report.find(self, self.arena, self.entries, self.root, failed or {})

    def _failure(self, failed: Mapping[Path, str], runs: Sequence[StageRun]) -> str:
        waiting = sum(run.out not in failed and not is_finished(run.out) for run in runs)
        return f"{len(failed)} of {len(runs)} stages failed; not run, because they depend on failed ones: {waiting}"
