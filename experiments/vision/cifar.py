"""``routed-rl cifar``: splits the encoding of a classifier by class (Cloud et al. 2024, section B.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.experiments.common.studies import LocalStudy, finished_runs, picture
from routed_rl.experiments.vision import figures as vision_figures
from routed_rl.experiments.vision.charts import loss_chart
from routed_rl.experiments.vision.images import Images, cifar100, digits
from routed_rl.experiments.vision.options import Cifar
from routed_rl.options import RUNS
from routed_rl.routing import RouteTable
from routed_rl.runs import RunDirectory, read_metrics
from routed_rl.runs.process import check_device, one_thread
from routed_rl.runs.progress import progress_display
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import aggregate, least_to_most, markdown, shown_mean, tidy
from routed_rl.vision import (
    HALVES,
    PartitionedNetwork,
    Penalties,
    partition_loss,
    partitioned_classifier,
    partitioned_resnet34,
    seeded,
    train_epoch,
)

DIGITS = "digits"
RUN_NAMES = {True: "routed", False: "control"}
KEYS = ("routed", "seed", "part", "group")
MEANINGS = {
    "routed": "whether classes are routed to the two halves; the control also has no L1 penalty",
    "seed": "seed of the model and of the order of images",
    "part": "classifier: `decoder` reads the whole encoding, the certificates `top` and `bottom` one half each",
    "group": "classes of the validation images: the first half is routed to `top`, the second to `bottom`",
    "accuracy": "share of these images that are classified correctly",
}
"""What each column of ``results.csv`` means."""
TITLES = {True: "routed", False: "no routing, no L1 penalty (control)"}
CHANNEL_MEAN, CHANNEL_SPREAD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""Mean and standard deviation of CIFAR pixels in 0 … 1, by channel, from the public code of the paper."""
PADDING = 4
"""Width of the black border that random crops may show, in pixels."""
EVALUATED_AT_ONCE = 500


@dataclass(frozen=True)
class Recipe:
    """The published recipe. It serves for both data sets."""

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    """at the start; falls to 0 along half a cosine"""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    l1: float = 3e-2
    scale: float = 0.25
    """factor on the whole loss"""


def main(command: Cifar) -> None:
    real = command.data != DIGITS
    out = command.out or RUNS / ("cifar-100" if real else "cifar-digits")
    recipe = _recipe(command, real)
    one_thread()
    with user_input():
        check_device(command.device)
        images = cifar100(Path(command.data)) if real else digits()
        task = Task(images, recipe, command.width, command.device)
        identity = {**asdict(recipe), "images": images.digest(), "width": command.width, "device": command.device}
    study = CifarReport(out, identity)
    study.run_and_show(_runs(command, out), lambda: _train(command, task, identity, out))


def _runs(command: Cifar, out: Path) -> list[Path]:
    """The directories of the runs, by seed."""
    return [out / "runs" / f"{RUN_NAMES[command.routed]}-s{seed}" for seed in range(command.seeds)]


def _train(command: Cifar, task: Task, identity: Mapping[str, Any], out: Path) -> None:
    """Train every classifier that is not finished."""
    for seed, path in enumerate(_runs(command, out)):
        with user_input():
            run = RunDirectory.open(path, {**identity, "routed": command.routed}, seed)
        with run, progress_display(unit="epochs", disable=run.finished) as display:
            bar = display.add_task(path.name, total=task.recipe.epochs)
            if not run.finished:
                try:
                    task.train(run, lambda epoch: display.update(bar, completed=epoch))  # noqa: B023
                except FloatingPointError as error:
                    raise UserError(f"{run.path}: training has diverged: {error}") from error


def _recipe(command: Cifar, real: bool) -> Recipe:
    at_least(1, seeds=command.seeds)
    if command.epochs is not None:
        at_least(1, epochs=command.epochs)
    if not 1 / 8 <= command.width <= 16:  # with fewer than 8 channels, torch convolutions corrupted memory (log)
        raise UserError(f"--width must be between 0.125 and 16, got {command.width}")
    if not real and command.width != 1:
        raise UserError(f"--width {command.width} applies to ResNet-34 only; name a CIFAR-100 folder with --data")
    return Recipe(epochs=command.epochs or (200 if real else 60))


class Task:
    """Images as tensors on a device. Trains and evaluates classifiers of these images.

    Raises:
        ValueError: for an impossible width, or if all images belong to one half of the classes.
    """

    def __init__(self, images: Images, recipe: Recipe, width: float, device: str) -> None:
        self.recipe, self.device = recipe, device
        self.colour = images.train.ndim == 4
        self.classes = images.classes
        for labels in (images.train_labels, images.test_labels):
            if len(np.unique(labels >= self.classes // 2)) < 2:
                raise ValueError("training and test images must include classes of both halves")
        self.width, self.pixels = width, images.train[0].size
        self.build(routed=False)  # refuses an impossible width before anything is written
        arrays = (images.train, images.test) if self.colour else images.flat()
        self.train_images, self.test_images = (torch.from_numpy(array.copy()).to(device) for array in arrays)
        self.train_labels, self.test_labels = (
            torch.from_numpy(labels).to(device) for labels in (images.train_labels, images.test_labels)
        )
        shape = (1, 3, 1, 1)
        self.mean, self.spread = (torch.tensor(v, device=device).view(shape) for v in (CHANNEL_MEAN, CHANNEL_SPREAD))

    def build(self, routed: bool) -> PartitionedNetwork:
        """A new classifier, with the routes of the routed run or of its control."""
        routes = RouteTable({"top": {"bottom": float(not routed)}, "bottom": {"top": float(not routed)}}, HALVES)
        if self.colour:
            return partitioned_resnet34(self.classes, routes, width=self.width)
        return partitioned_classifier(self.pixels, (128, 64), 32, self.classes, routes)

    def groups(self, labels: Tensor) -> Tensor:
        """The group of each label, ``(N,)``: 0 for the first half of the classes, 1 for the second half."""
        return (labels >= self.classes // 2).long()

    def prepared(self, images: Tensor) -> Tensor:
        """The images as the network reads them: colour images are normalised."""
        return (images / 255 - self.mean) / self.spread if self.colour else images

    def train(self, run: RunDirectory, on_epoch: Callable[[int], None]) -> None:
        """Train the classifier of a run from its last checkpoint on, then evaluate the classifier.

        Raises:
            FloatingPointError: if training diverges.
        """
        routed, seed, recipe = run.record.config["routed"], run.record.seed, self.recipe
        model = seeded(lambda: self.build(routed), seed).to(self.device)
        optimizer = SGD(model.parameters(), momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        penalties = Penalties((recipe.l1, recipe.l1) if routed else (0.0, 0.0), correlation=0.0)
        checkpoint = run.load_checkpoint()
        if checkpoint is not None:
            _restore(model, optimizer, checkpoint.tensors)

        def loss(index: Tensor, generator: torch.Generator) -> Tensor:
            index = index.to(self.device)
            images, labels = self.train_images[index], self.train_labels[index]
            outputs = model(self.prepared(augmented(images, generator) if self.colour else images), self.groups(labels))
            return recipe.scale * partition_loss(
                outputs,
                lambda logits: functional.cross_entropy(logits, labels, reduction="none"),
                self.groups(labels),
                (0, 1),
                penalties,
            )

        for epoch in range(checkpoint.step if checkpoint else 0, recipe.epochs):
            started = time.perf_counter()
            rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
            optimizer.param_groups[0]["lr"] = rate
            mean = train_epoch(optimizer, loss, len(self.train_labels), recipe.batch_size, seed, epoch)
            run.metrics.append({"epoch": epoch + 1, "learning_rate": rate, "loss": mean})
            run.timings.append({"epoch": epoch + 1, "seconds": time.perf_counter() - started})
            run.save_checkpoint(epoch + 1, _state(model, optimizer), {})
            on_epoch(epoch + 1)
        run.finish({"routed": routed, "seed": seed, "rows": self.evaluate(model)})

    def evaluate(self, model: PartitionedNetwork) -> list[dict[str, Any]]:
        """Validation accuracy of the decoder and of both certificates, by group of classes."""
        model.eval()
        groups = self.groups(self.test_labels)
        half = self.classes // 2
        names = {f"0–{half - 1}": groups == 0, f"{half}–{self.classes - 1}": groups == 1}
        right: dict[str, list[Tensor]] = {"decoder": [], **{half: [] for half in HALVES}}
        with torch.no_grad():
            for index in torch.arange(len(groups), device=self.device).split(EVALUATED_AT_ONCE):
                outputs = model(self.prepared(self.test_images[index]), groups[index])
                for part, logits in zip(right, (outputs.decoded, outputs.top, outputs.bottom), strict=True):
                    right[part].append((logits.argmax(dim=1) == self.test_labels[index]).to(torch.float32))
        return [
            {"part": part, "group": name, "accuracy": float(torch.cat(hits)[members].mean())}
            for part, hits in right.items()
            for name, members in names.items()
        ]


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels in each direction, with a black border. Mirror it with probability 1/2.

    Args:
        images: uint8, ``(B, 3, H, W)``.
        generator: a generator on the CPU.
    """
    count, _, height, width = images.shape
    down, right = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator).to(images.device)
    mirrored = (torch.rand(count, 1, generator=generator) < 0.5).to(images.device)
    rows = down + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    columns = right + torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(images, (PADDING,) * 4)
    which = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _state(model: PartitionedNetwork, optimizer: SGD) -> dict[str, Tensor]:
    """The tensors that the next epoch depends on, by name."""
    momentum = {f"momentum.{name}": optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
    return {**{f"model.{name}": tensor for name, tensor in model.state_dict().items()}, **momentum}


def _restore(model: PartitionedNetwork, optimizer: SGD, tensors: Mapping[str, Tensor]) -> None:
    saved = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    model.load_state_dict(saved)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"].to(parameter.device)


@dataclass(frozen=True)
class CifarReport(LocalStudy):
    """What there is to say of the finished runs in a directory, also of those of earlier commands."""

    TITLE = "Encodings of a classifier in two halves"
    FIGURES = ("groups",)

    def find(self, failed: Mapping[Path, str] | None = None) -> Findings | None:
        """Return the results of all finished runs, or None if no run is finished.

        Raises:
            ValueError: if a file of a run is damaged.
        """
        results, losses, timings = finished_runs(self.out), {}, []
        for path, result in results.items():
            losses[RUN_NAMES[result["routed"]], result["seed"]] = read_metrics(path / "metrics.csv")
            seconds = sum(float(row["seconds"]) for row in read_metrics(path / "timings.csv"))
            timings.append({"routed": result["routed"], "seed": result["seed"], "training_seconds": seconds})
        if not results:
            return None
        frame = tidy(
            [{"routed": of["routed"], "seed": of["seed"], **row} for of in results.values() for row in of["rows"]], KEYS
        )
        titles = {routed: title for routed, title in TITLES.items() if routed in set(frame.routed)}
        groups = partial(picture, "Accuracy by group of classes", partial(vision_figures.draw_groups, frame, titles))
        return Findings(
            frame, tidy(timings, KEYS), KEYS, summary(frame), {}, MEANINGS,
            charts={"loss": partial(loss_chart, losses)}, pictures={"groups": groups},
        )  # fmt: skip


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """The gap of each run, with columns ``routed``, ``seed``, ``gap``.

    A certificate's gap is its accuracy on its own classes minus its accuracy on the others. The gap of a run is the
    mean over both certificates.
    """
    first = frame.group.iloc[0]
    certificates = frame[frame.part.isin(HALVES)]
    own = (certificates.part == "top") == (certificates.group == first)
    signed = certificates.assign(gap=certificates.accuracy.where(own, -certificates.accuracy))
    return signed.groupby(["routed", "seed"]).gap.sum().div(len(HALVES)).reset_index()


def summary(frame: pd.DataFrame) -> str:
    """The runs in Markdown: accuracy by part and group of classes, and the gap of the certificates."""
    groups = list(dict.fromkeys(frame.group))
    cells = {
        (row["routed"], row["part"], row["group"]): shown_mean(row)
        for row in aggregate(frame, "accuracy", ["routed", "part", "group"]).to_dict("records")
    }
    apart = {row["routed"]: shown_mean(row) for row in aggregate(gaps(frame), "gap", ["routed"]).to_dict("records")}
    columns = [(part, group) for part in ("decoder", *HALVES) for group in groups]
    rows = [
        [name, *(cells[routed, part, group] for part, group in columns), apart[routed]]
        for routed, name in RUN_NAMES.items()
        if routed in apart
    ]
    seeds = frame.groupby("routed").seed.nunique()
    parts = [
        "# The encoding of a classifier in two halves",
        "Validation accuracy of three classifiers, by group of classes. The decoder reads the whole encoding. Each "
        "certificate (*top*, *bottom*) reads one half. A cell is the mean over seeds "
        f"({least_to_most(seeds)} per row) ± half the width of its 95 % confidence interval. "
        f"Classes {groups[0]} are routed to the top half, classes {groups[1]} to the bottom half. Gap: accuracy of a "
        "certificate on its own classes minus accuracy on the others, mean of both certificates. The *control* has no "
        "routing and no L1 penalty.",
        markdown(["run", *(f"{part} {group}" for part, group in columns), "gap"], rows),
    ]
    return "\n\n".join(parts) + "\n"
