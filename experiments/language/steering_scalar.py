"""``routed-rl steering-scalar``: route a word to one dimension of a model (gradient routing, section 4.2.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.experiments.common.studies import LocalStudy, finished_runs, picture
from routed_rl.experiments.language.options import SteeringScalar
from routed_rl.experiments.language.steering import RECIPES, SCORES, TOP, Recipe, Study
from routed_rl.experiments.language.steering_figures import COLOURS, draw_steering
from routed_rl.lm.inputs import model_identity, quiet_libraries
from routed_rl.lm.stories import TOPICS
from routed_rl.options import RUNS
from routed_rl.runs import RunDirectory, read_metrics
from routed_rl.runs.charts import Chart
from routed_rl.runs.process import check_device, one_thread
from routed_rl.runs.progress import progress_display
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import aggregate, as_csv, escaped, least_to_most, markdown, shown_mean, tidy

MODELS = "models.csv"
KEYS = ("routed", "seed", "axis", "strength")
NAMES = {True: "routed", False: "unrouted"}
MEANINGS = {
    "routed": "whether the tokens are routed; the control is trained without routing",
    "seed": "seed of the model and of the order of documents",
    "axis": "number of the routed token, and of its dimension of the residual stream",
    "strength": "number that is added to the dimension",
    "token": "mean probability that the next token is the routed one, on held-out documents",
    "topic": "the same of the tokens of its topic, with the routed one",
}
"""What each column of ``results.csv`` means."""
MEASURES = ("rank", "cosine", "runner_up", "topic_in_top", "others_cosine", "contrast_cosine")


def main(command: SteeringScalar) -> None:
    out, recipe = command.out or RUNS / f"steering-{command.preset}", _recipe(command)
    one_thread()
    quiet_libraries()
    with user_input():
        check_device(command.device)
        study = Study(recipe, command.device)
        identity = {**_plain(recipe), "model": model_identity(recipe.model), "device": command.device}
    runs = [out / "runs" / name for name in _planned(command)]
    SteeringReport(out, identity, study).run_and_show(runs, lambda: _train(command, study, identity, out))


def _planned(command: SteeringScalar) -> dict[str, tuple[bool, int]]:
    """Whether each model is routed, and its seed, by the name of its run."""
    kinds = (True, False) if command.unrouted else (True,)
    return {f"{NAMES[routed]}-s{seed}": (routed, seed) for seed in range(command.seeds) for routed in kinds}


def _train(command: SteeringScalar, study: Study, identity: Mapping[str, Any], out: Path) -> None:
    """Make the corpus, and train every model that is not finished."""
    recipe = study.recipe
    with progress_display(unit="documents", disable=(out / "corpus").exists()) as display, user_input():
        task = display.add_task("corpus", total=recipe.documents)
        corpus = study.corpus(out / "corpus", lambda: display.advance(task))
    for name, (routed, seed) in _planned(command).items():
        with user_input():
            run = RunDirectory.open(out / "runs" / name, {**identity, "routed": routed}, seed)
        with run, progress_display(disable=run.finished) as display:
            task = display.add_task(name, total=recipe.training.steps)
            if not run.finished:
                try:
                    with user_input():
                        study.train(run, corpus, lambda step: display.update(task, completed=step + 1))  # noqa: B023
                except FloatingPointError as error:
                    raise UserError(f"{run.path}: training diverged: {error}") from error


def _recipe(command: SteeringScalar) -> Recipe:
    at_least(1, seeds=command.seeds)
    recipe = RECIPES[command.preset]
    for name in ("steps", "batch_size", "documents"):
        if getattr(command, name) is not None:
            at_least(1, **{name: getattr(command, name)})
    for name in ("tokens", "blocks", "strengths"):
        given = getattr(command, name)
        if given is not None and (not given or len(set(given)) < len(given)):
            shown = " ".join(map(str, given)) or "none"
            raise UserError(f"--{name} must be one or more different values, got {shown}")
    names = (
        *("tokens", "corpus", "documents", "model", "tokenizer", "blocks", "steered_block", "strengths"),
        *("sample_strength", "batch_size"),
    )
    options = {name: value for name in names if (value := getattr(command, name)) is not None}
    if command.steps is not None:
        options["training"] = replace(recipe.training, steps=command.steps)
    recipe = replace(recipe, **options)
    strengths = (*recipe.strengths, recipe.sample_strength)
    if not all(map(math.isfinite, strengths)):
        raise UserError(f"--strengths and --sample-strength must be finite, got {' '.join(map(str, strengths))}")
    if recipe.batch_size % recipe.training.accumulate:
        # The user asks for other rows than the preset, so that the preset's parts do not fit.
        recipe = replace(recipe, training=replace(recipe.training, accumulate=1))
    if 0.0 not in recipe.strengths:
        recipe = replace(recipe, strengths=(0.0, *recipe.strengths))
    return replace(recipe, topics=_topics(command, recipe))


def _topics(command: SteeringScalar, recipe: Recipe) -> tuple[tuple[str, ...], ...]:
    if command.topics is not None:
        if len(command.topics) != len(recipe.tokens):
            raise UserError(f"--topics must be one list per token, so {len(recipe.tokens)}, got {len(command.topics)}")
        return tuple(tuple(topic.split(",")) for topic in command.topics)
    if command.tokens is None:
        return recipe.topics
    if recipe.corpus != "stories":
        return tuple((token,) for token in recipe.tokens)
    return tuple(next((words for words in TOPICS.values() if token in words), (token,)) for token in recipe.tokens)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON returns it, with lists for tuples."""
    return {key: _lists(value) for key, value in asdict(recipe).items()}


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(child) for key, child in value.items()}
    return [_lists(child) for child in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class SteeringReport(LocalStudy):
    """What there is to say of the finished runs in a directory, also of those of earlier commands."""

    TITLE = "Steering scalar"
    FIGURES = ("steering",)
    FILES = (MODELS,)
    study: Study

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs, or None if no run is finished.

        Raises:
            ValueError: if a file of a run is damaged.
        """
        results, recipe = finished_runs(self.out), self.study.recipe
        if not results:
            return None
        key = {path: {"routed": of["routed"], "seed": of["seed"]} for path, of in results.items()}
        axes = [
            ({**key[path], "axis": number}, of["validation_loss"], axis)
            for path, of in results.items()
            for number, axis in enumerate(of["axes"])
        ]
        curves = tidy([{**k, **row} for k, _, axis in axes for row in axis["curve"]], KEYS)
        models = tidy(
            [{**k, "validation_loss": loss, **{m: axis[m] for m in MEASURES}} for k, loss, axis in axes], KEYS
        )
        timings = [
            {**key[path], "training_seconds": sum(float(row["seconds"]) for row in read_metrics(path / "timings.csv"))}
            for path in results
        ]
        scores = pd.concat(
            [
                pd.read_csv(path / SCORES, keep_default_na=False, dtype={"text": str}).assign(**key[path])
                for path in results
            ]
        )
        text, of = self.study.text, self.study.axes
        topics = {i: {text(token) for token in (axis.token, *axis.others)} for i, axis in enumerate(of)}
        tokens = {i: text(axis.token) for i, axis in enumerate(of)}
        figure = partial(draw_steering, curves, scores, topics, tokens)
        return Findings(
            curves, tidy(timings, KEYS), KEYS, summary(curves, models, [*results.values()], recipe), {}, MEANINGS,
            charts={f"topic_{i}": partial(_chart, curves[curves.axis == i], i, token) for i, token in tokens.items()},
            files={MODELS: as_csv(models)},
            pictures={"steering": partial(picture, "Steering, and the top tokens along each dimension", figure)},
        )  # fmt: skip


def _chart(curves: pd.DataFrame, axis: int, token: str) -> Chart:
    """Return the probability of a topic against the number added to its dimension."""
    points = curves.assign(series=curves.routed.map(NAMES)).rename(columns={"strength": "x", "topic": "y"})
    return Chart(
        f"Steering towards {token!r}", f"added to dimension {axis} of the residual stream",
        "probability that the next token is of the topic", points,
        colours={name: COLOURS[routed] for routed, name in NAMES.items()},
    )  # fmt: skip


def summary(curves: pd.DataFrame, models: pd.DataFrame, results: list[dict[str, Any]], recipe: Recipe) -> str:
    """Return the study in Markdown: probabilities by strength, ranks of routed tokens, top tokens and samples."""
    seeds = models.groupby("routed").seed.nunique()
    parts = [
        "# A steering scalar",
        f"Means ± half a 95 % interval over seeds ({least_to_most(seeds)} per row). Blocks count from 0. "
        f"Routed: the outputs of blocks {', '.join(map(str, recipe.blocks))}. Steered: the output of block "
        f"{recipe.steered_block}.",
        "Validation loss: "
        + ", ".join(
            f"{shown_mean(row)} {NAMES[row['routed']]}"
            for row in aggregate(models[models.axis == 0], "validation_loss", ["routed"]).to_dict("records")[::-1]
        )
        + " (nats per token).",
    ]
    for number, token in enumerate(recipe.tokens):
        parts += [
            f"## {escaped(repr(token))}: dimension {number}",
            "Mean probability that the next token is of the topic, by the number added to the dimension:",
            _curve_table(curves[curves.axis == number]),
            "Cosine of unembeddings with the dimension. *Rank*: of the routed token, from 0. *Runner-up*: the largest "
            f"cosine of another token. *Topic in top*: tokens of the topic among the top {TOP}. *Others*: mean of the "
            "topic's other tokens. *Contrast*: mean of tokens of other topics, or of all other tokens.",
            _model_table(models[models.axis == number]),
        ]
        for result in results:
            found = result["axes"][number]
            top = ", ".join(escaped(repr(text)) for text in found["top"])
            parts.append(f"- Top tokens, {NAMES[result['routed']]}, seed {result['seed']}: {top}")
        first = next((result for result in results if result["routed"]), results[0])
        texts = {
            f"steered by {recipe.sample_strength:g}": first["axes"][number]["samples"],
            "not steered": first["samples"],
        }
        for title, samples in texts.items():
            parts.append(f"Samples, {NAMES[first['routed']]}, seed {first['seed']}, {title}:")
            parts.append("\n".join(f"- {escaped(sample)}" for sample in samples))
    return "\n\n".join(parts) + "\n"


def _curve_table(curves: pd.DataFrame) -> str:
    cells = {
        (row["routed"], row["strength"]): shown_mean(row)
        for row in aggregate(curves, "topic", ["routed", "strength"]).to_dict("records")
    }
    strengths = sorted(set(curves.strength))
    rows = [[NAMES[kind], *(cells[kind, s] for s in strengths)] for kind in NAMES if (kind, 0.0) in cells]
    return markdown(["model", *(f"{s:g}" for s in strengths)], rows)


def _model_table(models: pd.DataFrame) -> str:
    rows = [
        [
            f"{NAMES[row['routed']]}, seed {row['seed']}",
            str(row["rank"]),
            *("–" if pd.isna(row[m]) else f"{row[m]:.3f}" for m in ("cosine", "runner_up")),
            str(row["topic_in_top"]),
            *("–" if pd.isna(row[m]) else f"{row[m]:.3f}" for m in ("others_cosine", "contrast_cosine")),
        ]
        for row in models.to_dict("records")
    ]
    return markdown(["model", "rank", "cosine", "runner-up", "topic in top", "others", "contrast"], rows)
