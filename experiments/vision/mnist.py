"""``routed-rl mnist``: splits the encoding of an autoencoder by digit, in the settings of table 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.experiments.common.studies import LocalStudy, picture
from routed_rl.experiments.vision import figures as vision_figures
from routed_rl.experiments.vision.charts import accuracy_chart, error_chart
from routed_rl.experiments.vision.images import Images, digits, mnist
from routed_rl.experiments.vision.options import Mnist
from routed_rl.experiments.vision.splits import CONSTANT, PUBLISHED_ACCURACY, RECIPES, SETTINGS, TEN_WAY, Recipe, Study
from routed_rl.options import RUNS
from routed_rl.runs import read_json, write_json
from routed_rl.runs.process import check_device, one_thread
from routed_rl.runs.progress import progress_display
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import aggregate, least_to_most, markdown, shown_mean, tidy

MODELS = "models"
KEYS = ("setting", "seed", "part", "group")
COLUMNS = ("part", "group", "mse", "mae", "accuracy")
MEANINGS = {
    "setting": "row of table 2 of Cloud et al. 2024, section B, or `ten-way`: one latent per digit",
    "seed": "seed of the model and of the order of images",
    "part": "what reconstructs the images: `decoder` reads the whole encoding, the certificates `top` and `bottom` one "
    "half each; `constant`: the median training image",
    "group": "validation images: a digit, the digits routed to the `top` or the `bottom` half, or `all`",
    "mse": "mean squared error of pixels in -1 … 1",
    "mae": "mean absolute error of pixels in -1 … 1",
    "accuracy": "share of images whose largest latent is that of their digit; only of `ten-way`",
}
"""What each column of ``results.csv`` means."""
ORDER = (*SETTINGS, TEN_WAY)


def main(command: Mnist) -> None:
    out, recipe = command.out or RUNS / f"mnist-{command.data}", _recipe(command)
    one_thread()
    with user_input():
        check_device(command.device)
        images = _images(command)
        study = Study(images, command.partition, recipe, command.device)
        identity = _identity(command, images, recipe)
    report = MnistReport(out, identity, command.partition, command.data == "mnist")
    report.run_and_show(_models(command, out).values(), lambda: _train(command, study, out))


def _models(command: Mnist, out: Path) -> dict[tuple[str, int], Path]:
    """The file with the result of each model, by setting and seed."""
    return {
        (setting, seed): out / MODELS / f"{setting}-s{seed}.json"
        for seed in range(command.seeds)
        for setting in command.setting
    }


def _train(command: Mnist, study: Study, out: Path) -> None:
    """Train every model whose file is not there."""
    (out / MODELS).mkdir(exist_ok=True)
    missing = {key: path for key, path in _models(command, out).items() if not path.exists()}
    with progress_display(unit="epochs", disable=not missing) as display:
        task = display.add_task("", total=len(missing) * study.recipe.epochs)
        for (setting, seed), path in missing.items():
            display.update(task, description=f"setting {setting}, seed {seed}")
            try:
                result = study.run(setting, seed, lambda: display.advance(task))
            except FloatingPointError as error:
                raise UserError(f"setting {setting}, seed {seed}: training has diverged: {error}") from error
            write_json(path, result)


def _recipe(command: Mnist) -> Recipe:
    at_least(1, seeds=command.seeds)
    if not command.setting or len(set(command.setting)) < len(command.setting):
        raise UserError(
            f"--setting must name at least one and each only once, got {' '.join(command.setting) or 'none'}"
        )
    given = {"epochs": command.epochs, "batch_size": command.batch_size}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    at_least(1, **options)
    if (command.data, command.recipe) not in RECIPES:
        raise UserError(f"--recipe {command.recipe} needs --data mnist, got {command.data}")
    return replace(RECIPES[command.data, command.recipe], **options)


def _images(command: Mnist) -> Images:
    if command.data == "mnist":
        return mnist(command.images)
    if command.images is not None:
        raise ValueError(f"--images {command.images} needs --data mnist")
    return digits()


def _identity(command: Mnist, images: Images, recipe: Recipe) -> dict[str, Any]:
    """The options that all models of a study share. Settings and seeds may be added later."""
    shared = {"data": command.data, "images": images.digest(), "partition": command.partition, "device": command.device}
    return {**shared, **asdict(recipe), "hidden": list(recipe.hidden)}


@dataclass(frozen=True)
class MnistReport(LocalStudy):
    """What there is to say of the models in a directory, also of those of earlier commands.

    Attributes:
        partition: the digits that are routed to the top half, or ``hash``.
        published: whether the data are those of the paper, MNIST.
    """

    TITLE = "Encodings of digits in two halves"
    FIGURES = ("bars", "images", "traversal")
    RUNS = f"{MODELS}/*.json"
    partition: str
    published: bool

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished models, or None if no model is finished.

        Raises:
            ValueError: if the file of a model is damaged.
        """
        results: dict[tuple[str, int], dict[str, Any]] = {}
        for path in (self.out / MODELS).glob("*.json"):
            setting, _, seed = path.stem.rpartition("-s")
            results[setting, int(seed)] = read_json(path)
        if not results:
            return None
        keys = sorted(results, key=lambda key: (ORDER.index(key[0]), key[1]))
        rows = [
            {"setting": setting, "seed": seed, **{name: row[name] for name in COLUMNS if name in row}}
            for setting, seed in keys
            for row in results[setting, seed]["rows"]
        ]
        frame = tidy(rows, KEYS)
        timings = [
            {"setting": setting, "seed": seed, "seconds": results[setting, seed]["seconds"]} for setting, seed in keys
        ]
        seconds = sum(row["seconds"] for row in timings) / len(timings)
        text = summary(frame, _group_names(self.partition), self.published)
        text += f"\n{len(results)} models, {seconds:.0f} CPU seconds per model on average.\n"
        shown = list(dict.fromkeys(setting for setting, _ in keys))
        split = [setting for setting in shown if setting != TEN_WAY]
        titles = {setting: f"{setting}: {SETTINGS[setting].title}" for setting in split}
        first = {setting: results[min(key for key in keys if key[0] == setting)]["pictures"] for setting in shown}
        pictures, charts = {}, {}
        if split:
            bars = partial(vision_figures.draw_bars, frame, titles, _top(self.partition))
            pictures["bars"] = partial(picture, "Validation error by digit", bars)
            images = partial(vision_figures.draw_pictures, {titles[setting]: first[setting] for setting in split})
            pictures["images"] = partial(picture, "Reconstructions from the whole encoding and from each half", images)
            charts = {f"{part}_error": partial(error_chart, frame, part) for part in ("bottom", "top", "decoder")}
        if TEN_WAY in first:
            traversal = partial(vision_figures.draw_traversal, first[TEN_WAY]["traversal"])
            pictures["traversal"] = partial(picture, "Images by one latent", traversal)
            charts["accuracy"] = partial(accuracy_chart, frame)
        return Findings(frame, tidy(timings, KEYS), KEYS, text, {}, MEANINGS, charts=charts, pictures=pictures)


def _top(partition: str) -> tuple[int, ...]:
    """The digits that are routed to the top half; empty if a hash decides."""
    return () if partition == "hash" else tuple(int(digit) for digit in partition.split(","))


def _group_names(partition: str) -> dict[str, str]:
    """Names, in tables, of the groups of images that are routed to each half."""
    top = _top(partition)
    if not top:
        return {"top": "hash 0", "bottom": "hash 1"}
    bottom = (digit for digit in range(10) if digit not in top)
    return {"top": "".join(map(str, sorted(top))), "bottom": "".join(map(str, bottom))}


def summary(frame: pd.DataFrame, names: Mapping[str, str], published: bool) -> str:
    """The study in Markdown: errors of certificates and decoder, the values of table 2, and the ten-way variant.

    Args:
        frame: the rows of ``results.csv``.
        names: names of the groups ``top`` and ``bottom``.
        published: whether the data are those of the paper, MNIST.
    """
    parts = ["# The encoding of an autoencoder in two halves"]
    split = frame[(frame.setting != TEN_WAY) & frame.group.isin(list(names))]
    seeds = frame.groupby("setting").seed.nunique()
    parts.append(
        f"Validation error on pixels in -1 … 1. A cell is the mean over seeds ({least_to_most(seeds)} per row) "
        f"± half the width of its 95 % confidence interval. Group *{names['top']}* is routed to the top half, "
        f"group *{names['bottom']}* to the bottom half. A certificate reconstructs all digits from "
        "one half of the encoding."
    )
    if len(split):
        parts.append("\n".join(f"- {setting}: {SETTINGS[setting].title}" for setting in _settings(split)))
        parts += ["## Mean squared error of the bottom certificate", _bottom(split, names)]
        if not published:
            parts.append("The numbers of the paper are measured on MNIST. Compare only the order of the settings.")
        parts += ["## Mean absolute error of decoder, bottom certificate and top certificate", _absolute(split, names)]
        constant = split[split.part == CONSTANT].groupby("group").mae.mean()
        known = ", ".join(f"{constant[group]:.3f} on {name}" for group, name in names.items())
        parts.append(f"The best constant image, the median of each pixel, has a mean absolute error of {known}.")
    if TEN_WAY in set(frame.setting):
        ten = frame[(frame.setting == TEN_WAY) & (frame.group == "all")]
        (accuracy,) = aggregate(ten, "accuracy", ["setting"]).to_dict("records")
        parts += [
            "## Ten-way variant",
            f"The largest of the ten latents classifies validation images with accuracy {shown_mean(accuracy)}. "
            f"The published accuracy on MNIST is {PUBLISHED_ACCURACY}. The mean absolute error of the "
            f"decoder is {ten.mae.mean():.3f}.",
        ]
    return "\n\n".join(parts) + "\n"


def _cells(split: pd.DataFrame, metric: str) -> dict[tuple[str, str, str], str]:
    found = aggregate(split, metric, ["setting", "part", "group"])
    return {(row["setting"], row["part"], row["group"]): shown_mean(row) for row in found.to_dict("records")}


def _settings(split: pd.DataFrame) -> list[str]:
    return [setting for setting in SETTINGS if setting in set(split.setting)]


def _bottom(split: pd.DataFrame, names: Mapping[str, str]) -> str:
    cells = _cells(split, "mse")
    bottom = split[split.part == "bottom"]
    means = bottom.groupby(["setting", "group"]).mse.mean()
    rows = [
        [
            setting,
            cells[setting, "bottom", "top"],
            cells[setting, "bottom", "bottom"],
            f"{means[setting, 'top'] / means[setting, 'bottom']:.2f}",
            *(f"{value:.2f}" for value in SETTINGS[setting].published),
            f"{SETTINGS[setting].published[0] / SETTINGS[setting].published[1]:.2f}",
        ]
        for setting in _settings(split)
    ]
    header = ["setting", names["top"], names["bottom"], "ratio", "paper, 0–4", "paper, 5–9", "paper, ratio"]
    return markdown(header, rows)


def _absolute(split: pd.DataFrame, names: Mapping[str, str]) -> str:
    cells = _cells(split, "mae")
    columns = [(part, group) for part in ("decoder", "bottom", "top") for group in names]
    rows = [[setting, *(cells[setting, part, group] for part, group in columns)] for setting in _settings(split)]
    return markdown(["setting", *(f"{part} {names[group]}" for part, group in columns)], rows)
