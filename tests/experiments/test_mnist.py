"""``routed-rl mnist`` and ``cifar``: the same results however often interrupted, and the claims on small data."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from routed_rl.experiments import cli
from routed_rl.experiments.vision import cifar, images, splits
from routed_rl.experiments.vision.images import digits
from routed_rl.experiments.vision.splits import RECIPES, SETTINGS, Study, groups_of
from routed_rl.runs import RunDirectory, read_json
from routed_rl.runs.process import one_thread
from routed_rl.runs.studies import progress
from tests.browser import assert_report_opens, needs_browser
from tests.experiments.described import assert_described
from tests.experiments.mistakes import complaints
from tests.experiments.test_images import cifar_files, write_npz

PARTS = ["bottom", "constant", "decoder", "top"]


def run(*options):
    cli.main([*options[:1], *map(str, options[1:])])


def refused(capsys, *options):
    """The one line that a mistake ends with."""
    (line,) = complaints(capsys, lambda: run(*options))
    return line


OPTIONS = ("--setting", "2", "10", "ten-way", "--seeds", "2", "--epochs", "2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("mnist") / "whole"
    run("mnist", *OPTIONS, "--out", out)
    return out


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """Routed classifiers and their controls, by two commands."""
    out = tmp_path_factory.mktemp("cifar") / "study"
    for option in ("--routed", "--no-routed"):
        run("cifar", option, "--seeds", "2", "--epochs", "20", "--out", out)
        (out / "planned.json").rename(out / "earlier.json")  # as in a version that did not write it
    (out / "earlier.json").rename(out / "planned.json")
    return out


@needs_browser
def test_the_reports_of_both_commands_open_from_disk(whole, classifiers):
    assert_report_opens(whole / "report.html", charts=4)
    assert_report_opens(classifiers / "report.html", charts=1)


def test_a_study_and_the_same_study_broken_off(whole, tmp_path, capsys, monkeypatch):
    options, again = OPTIONS, tmp_path / "again"
    figures = {"bars.png", "images.png", "traversal.png"}
    assert {path.name for path in whole.iterdir()} == {
        *(".lock", "study.json", "planned.json", "models"),
        *("results.csv", "results.columns.md", "timings.csv", "summary.md", "report.html", "charts.json"),
        *figures,
    }
    assert_described(whole)
    frame = pd.read_csv(whole / "results.csv", dtype={"setting": str})
    assert list(frame) == ["setting", "seed", "part", "group", "mse", "mae", "accuracy"]
    assert not frame.duplicated(["setting", "seed", "part", "group"]).any()
    split = frame[frame.setting == "2"]
    assert sorted(split.part.unique()) == PARTS and set(split.seed) == {0, 1}
    assert set(split.group) == {*"0123456789", "top", "bottom", "all"}
    assert (frame.accuracy.notna() == (frame.setting == "ten-way")).all()
    top = split[(split.seed == 0) & (split.part == "top")].set_index("group").mse
    counts = np.bincount(digits().test_labels)
    assert top["top"] == pytest.approx(np.average([top[str(d)] for d in range(5)], weights=counts[:5]), rel=1e-5)
    text = (whole / "summary.md").read_text()
    assert "routing, separate decoders" in text and "0.33" in text and "Ten-way" in text

    # Broken off in the second model; then asked for in two portions.
    real, epochs = splits.train_epoch, []

    def dying(*args):
        epochs.append(args)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(splits, "train_epoch", dying)
        with pytest.raises(SystemExit) as stop:
            run("mnist", *options, "--out", again)
    assert stop.value.code == 130 and [path.name for path in (again / "models").iterdir()] == ["2-s0.json"]
    assert progress(again) == (1, 6)
    run("mnist", "--setting", "ten-way", "--seeds", "1", "--epochs", "2", "--out", again)
    run("mnist", *options, "--out", again)
    assert (again / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()

    # Finished: drawn again, not trained.
    monkeypatch.setattr(splits, "train_epoch", None)
    (again / "bars.png").unlink()
    (again / "results.csv").unlink()
    run("mnist", *options, "--out", again)
    assert (again / "results.csv").read_bytes() == (whole / "results.csv").read_bytes() and (
        again / "bars.png"
    ).exists()

    capsys.readouterr()
    assert "holds another study" in refused(capsys, "mnist", *options[:-1], "3", "--out", again)
    (again / "models" / "2-s0.json").write_text("{")
    assert "2-s0.json" in refused(capsys, "mnist", *options, "--out", again)


def test_mnist_from_files_and_other_partitions(tmp_path, capsys, monkeypatch):
    recipe = replace(RECIPES["mnist", "quick"], hidden=(16, 16))
    monkeypatch.setitem(splits.RECIPES, ("mnist", "quick"), recipe)
    path = write_npz(tmp_path / "m.npz")
    options = ("mnist", "--data", "mnist", "--images", path, "--setting", "6", "--seeds", "1", "--epochs", "1")
    for partition, name in (("hash", "hash 1"), ("7,0", "1234568")):
        out = tmp_path / partition
        run(*options, "--partition", partition, "--out", out)
        assert name in (out / "summary.md").read_text() and (out / "images.png").exists()
    assert read_json(out / "study.json")["images"] == images.mnist(path).digest()


def test_partitions():
    pixels, labels = digits().test, digits().test_labels
    assert np.array_equal(groups_of("0,1,2,3,4", pixels, labels), (labels > 4).astype(int))
    assert set(labels[groups_of("9,3", pixels, labels) == 0]) == {3, 9}
    meaningless = groups_of("hash", pixels, labels)
    assert np.array_equal(meaningless, groups_of("hash", pixels.copy(), labels * 0))
    assert 0.4 < meaningless.mean() < 0.6
    assert all(0.2 < meaningless[labels == digit].mean() < 0.8 for digit in range(10)), "every digit is in both"


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (["--seeds", "0"], "0"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "-1"], "--batch-size must be at least 1, got -1"),
        (["--setting", "11"], "11"),
        (["--setting", "1", "1"], "1 1"),
        (["--partition", "0,0"], "'0,0'"),
        (["--partition", "0,x"], "'0,x'"),
        (["--partition", "0,1,2,3,4,5,6,7,8,9"], "0,1,2,3,4,5,6,7,8,9"),
        (["--partition", ""], "''"),
        (["--data", "fashion"], "fashion"),
        (["--recipe", "paper"], "--recipe paper needs --data mnist, got digits"),
        (["--images", "no/such"], "no/such"),
        (["--data", "mnist", "--images", "no/such"], "no/such"),
    ],
)
def test_bad_options_end_in_one_line(options, quoted, tmp_path, capsys):
    assert quoted in refused(capsys, "mnist", "--out", tmp_path / "s", *options)
    assert not (tmp_path / "s").exists()


def test_a_directory_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    for command in ("mnist", "cifar"):
        assert "holds no study" in refused(capsys, command, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def gap(rows):
    """How much worse a certificate is on the other half's digits than on its own, mean of both."""
    mae = {(row["part"], row["group"]): row["mae"] for row in rows}
    differences = (mae["bottom", "top"] - mae["bottom", "bottom"], mae["top", "bottom"] - mae["top", "top"])
    return sum(differences) / 2


@pytest.fixture
def study():
    one_thread()
    return Study(digits(), "0,1,2,3,4", replace(RECIPES["digits", "quick"], epochs=60), "cpu")


@pytest.mark.parametrize("seed", [11, pytest.param(12, marks=pytest.mark.slow)])
def test_routing_splits_digits_and_its_absence_does_not(study, seed):
    gaps = {setting: gap(study.run(setting, seed, lambda: None)["rows"]) for setting in ("1", "10")}
    assert gaps["1"] > 0.03 and abs(gaps["10"]) < 0.015


@pytest.mark.parametrize("seed", [11, pytest.param(12, marks=pytest.mark.slow)])
def test_the_largest_latent_names_the_digit(study, seed):
    rows = study.run("ten-way", seed, lambda: None)["rows"]
    assert next(row["accuracy"] for row in rows if row["group"] == "all") > 0.85


@pytest.mark.slow
def test_the_claims_of_the_paper_on_digits(tmp_path):
    """Five seeds of all settings: the assertions A1 to A5 of the scaled-down protocol, and the ten-way variant."""
    run("mnist", "--setting", *SETTINGS, "ten-way", "--seeds", "5", "--out", tmp_path / "s")
    frame = pd.read_csv(tmp_path / "s" / "results.csv", dtype={"setting": str})
    mae = frame.groupby(["setting", "part", "group"]).mae.mean()

    def apart(setting, part):
        return mae[setting, part, "top"] - mae[setting, part, "bottom"]

    assert apart("1", "bottom") >= 0.07 and apart("1", "top") <= -0.07
    assert all(mae["1", "decoder", g] <= 0.5 * mae["1", "constant", g] for g in ("top", "bottom"))
    assert all(abs(apart(setting, part)) <= 0.04 for setting in ("9", "10") for part in ("top", "bottom"))
    assert all(abs(apart("5", part)) <= 0.04 for part in ("top", "bottom"))
    for part in ("top", "bottom"):
        assert mae["8", part, "top"] == pytest.approx(mae["8", part, "bottom"], rel=0.1)
    constant = mae["1", "constant", "top"]
    assert mae["1", "bottom", "top"] >= 0.75 * constant and mae["10", "bottom", "top"] <= 0.5 * constant
    ten = frame[(frame.setting == "ten-way") & (frame.group == "all")]
    assert len(ten) == 5 and ten.accuracy.mean() >= 0.80


def test_a_classifier_and_its_control(classifiers):
    assert_described(classifiers)
    assert progress(classifiers) == (4, 4), "also those of the first command"
    frame = pd.read_csv(classifiers / "results.csv")
    found = cifar.gaps(frame).groupby("routed").gap
    assert found.min()[True] >= 0.3 and found.max()[False] <= 0.05
    assert (frame[frame.part == "decoder"].accuracy > 0.9).all()
    assert {"groups.png", "summary.md"} <= {path.name for path in classifiers.iterdir()}
    assert "no routing and no L1 penalty" in (classifiers / "summary.md").read_text()


def test_gaps_are_own_minus_other():
    accuracy = {("top", "a"): 0.9, ("top", "b"): 0.2, ("bottom", "a"): 0.1, ("bottom", "b"): 0.6, ("decoder", "a"): 9.0}
    rows = [{"routed": True, "seed": 0, "part": p, "group": g, "accuracy": v} for (p, g), v in accuracy.items()]
    assert cifar.gaps(pd.DataFrame(rows)).gap.tolist() == [pytest.approx((0.7 + 0.5) / 2)]


def test_resnet_on_generated_images_and_the_same_run_killed(tmp_path, capsys, monkeypatch):
    """The published recipe in narrow, broken off after an epoch: the same files in the end."""
    data = cifar_files(tmp_path, train=100, test=100)
    options = ("cifar", "--data", data, "--width", "0.125", "--seeds", "1", "--epochs", "3")
    run(*options, "--out", tmp_path / "whole")
    save = RunDirectory.save_checkpoint

    def dying(self, step, tensors, meta):
        save(self, step, tensors, meta)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", dying)
        with pytest.raises(SystemExit) as stop:
            run(*options, "--out", tmp_path / "again")
    assert stop.value.code == 130
    run(*options, "--out", tmp_path / "again")
    for name in ("results.csv", "summary.md", "runs/routed-s0/metrics.csv", "runs/routed-s0/evaluation.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    frame = pd.read_csv(tmp_path / "whole" / "results.csv")
    assert set(frame.group) == {"0–49", "50–99"}


def test_half_of_the_classes_is_too_few(tmp_path, capsys):
    data = cifar_files(tmp_path, train=100, test=50)
    assert "both halves" in refused(capsys, "cifar", "--data", data, "--out", tmp_path / "s")


def test_augmentation_shifts_and_mirrors():
    pictures = torch.arange(32 * 32, dtype=torch.float32).view(1, 1, 32, 32).expand(64, 3, 32, 32)
    found = cifar.augmented(pictures, torch.Generator().manual_seed(0))
    assert found.shape == pictures.shape
    padded = torch.nn.functional.pad(pictures[0], (4,) * 4)
    crops = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    seen = [
        next(k for k, crop in enumerate([*crops, *(crop.flip(2) for crop in crops)]) if torch.equal(image, crop))
        for image in found
    ]
    assert len(set(seen)) > 30 and 16 < sum(k >= len(crops) for k in seen) < 48


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (["--seeds", "0"], "0"),
        (["--epochs", "-2"], "-2"),
        (["--data", "no/such"], "no/such"),
        (["--width", "0.5"], "0.5"),
        (["--data", "no/such", "--width", "nan"], "nan"),
        (["--data", "no/such", "--width", "100"], "100"),
        (["--data", "no/such", "--width", "0.0625"], "--width must be between 0.125 and 16, got 0.0625"),
    ],
)
def test_bad_options_of_cifar_end_in_one_line(options, quoted, tmp_path, capsys):
    assert quoted in refused(capsys, "cifar", "--out", tmp_path / "s", *options)
    assert not (tmp_path / "s").exists()
