"""How far each score can be trusted, by the models of an arena whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from routed_rl.plugins import Plugin
from routed_rl.runs import Stage
from routed_rl.runs.tables import markdown
from routed_rl.unlearning.arena.entries import FULL, NUMBERS, RELEARNED, RETRAINED, ROUNDED, Arena, Entry
from routed_rl.unlearning.scores import Numbers, Score
from routed_rl.unlearning.scores.meta import rising, trust

BAR = 0.8
"""Faithfulness and robustness from which a score passes. In a published meta-evaluation (Lee et al. 2026, arXiv
2605.24614), scores that can be trusted are above it in both; truth ratio and ROUGE are far below it in robustness."""
Pair = tuple[float, float]
"""A value before and after a change."""
COLUMNS = {
    "faithfulness": "faithfulness: 1 if full models always score more than retrained ones, 0.5 if it is chance",
    "stability": "stability: 1 if rounding to 4 bits moves no value",
    "following": "following: 1 if a short fine-tuning changes unlearned models' values as the retrained one's",
    "robustness": "robustness: harmonic mean of stability and following",
}


def trusted(done: Sequence[Entry], arena: Arena, root: Path) -> pd.DataFrame:
    """Return how far each score of the forget set can be trusted; the most trusted score first.

    Full models know the forget set, and retrained models do not. A score that compares with the retrained model
    compares here with those of other seeds, so it needs two seeds. For a score that reads the retrained model,
    faithfulness is not measured: it would compare that model with itself.

    Returns:
        A row for each score, with the columns ``score`` and those of :class:`~routed_rl.unlearning.scores.Trust`. NaN:
        not measured. No rows without the models that ``--trust`` adds.
    """
    rows = []
    for name, plugin in arena.scores.items():
        score = plugin.kind()
        if score.about_kept or not any(entry.changed for entry in done):
            continue
        knowing, unknowing = (_values(done, kind, name, plugin, root) for kind in (FULL, RETRAINED))
        changed = [_pair(entry, ROUNDED, name, score, root) for entry in done if entry.changed]
        taught = {e.seed: _pair(e, RELEARNED, name, score, root) for e in done if e.stage.kind == RETRAINED}
        relearned = [
            (_pair(entry, RELEARNED, name, score, root), taught[entry.seed])
            for entry in done
            if entry.changed and entry.method is not None and entry.seed in taught
        ]
        found = trust(
            knowing,
            unknowing,
            [pair for pair in changed if np.isfinite(pair).all()],
            [pairs for pairs in relearned if np.isfinite(pairs).all()],
        )
        rows.append({"score": name, **{column: getattr(found, column) for column in COLUMNS}})
    frame = pd.DataFrame(rows, columns=["score", *COLUMNS])
    order = (frame.faithfulness + frame.robustness).sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def shown_trust(trust: pd.DataFrame, main: str) -> list[str]:
    """Return the part of the leaderboard about the scores themselves, in Markdown; nothing if it was not measured."""
    if not len(trust):
        return []
    passing = list(trust.score[(trust.faithfulness >= BAR) & (trust.robustness >= BAR)])
    verdict = "which passes" if main in passing else "which does not pass: `--main` names another score"
    cells = [[row[0], *("" if pd.isna(of) else f"{of:.2f}" for of in row[1:])] for row in trust.itertuples(index=False)]
    return [
        "## Which score to trust",
        f"By the models of this study. A score passes with {BAR:.2f} or more in faithfulness and in robustness: "
        f"{', '.join(f'`{name}`' for name in passing) or 'none does'}. Models are ranked by `{main}`, {verdict}.",
        f"{'; '.join(COLUMNS.values())}.",
        markdown(["score", *COLUMNS], cells),
    ]


def _pair(entry: Entry, change: str, name: str, score: Score, root: Path) -> Pair:
    """A model's value before and after a change. NaN: not finite."""
    return tuple(_value(stage, score, root) for stage in (entry.scores[name], entry.changed[change][name]))  # type: ignore[return-value]


def _value(stage: Stage, score: Score, root: Path) -> float:
    value = (stage.result(root) or {}).get("value")
    return np.nan if value is None else rising(score, value)


def _values(done: Sequence[Entry], kind: str, name: str, plugin: Plugin[Score], root: Path) -> list[float]:
    """The finite values of all full, or all retrained, models; none if the score would read the retrained model."""
    if RETRAINED in plugin.kind.needs:
        return []
    of_kind = [entry.scores[name] for entry in done if entry.stage.kind == kind]
    found = [_value(stage, plugin.kind(), root) for stage in of_kind]
    if plugin.kind.compared:
        retrained = [entry.scores[name] for entry in done if entry.stage.kind == RETRAINED]
        found = [*_elsewhere(_finished(of_kind, root), _finished(retrained, root), plugin.kind(), root)]
    return [value for value in found if np.isfinite(value)]


def _finished(stages: Sequence[Stage], root: Path) -> list[Stage]:
    return [stage for stage in stages if stage.result(root) is not None]


def _elsewhere(stages: Sequence[Stage], retrained: Sequence[Stage], score: Score, root: Path) -> Iterator[float]:
    """Values of models, compared with the retrained models of other seeds."""

    def numbers(stage: Stage) -> Numbers:
        return load_file(stage.path(root) / NUMBERS)

    for stage in stages:
        for other in retrained:
            if other.seed != stage.seed:
                yield rising(score, score.value(numbers(stage), numbers(other)))
