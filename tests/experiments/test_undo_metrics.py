"""``routed-rl undo``: metrics are measured, and attacks are added, without training a model again."""

import shutil

import numpy as np
import pandas as pd
import pytest

from tests.experiments.described import assert_described
from tests.experiments.killed_undo import OPTIONS
from tests.experiments.small_undo import run, small_models

STUDY = (*OPTIONS, "--alphas", "0.5")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with small_models(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def study(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("undo") / "study"
    run(small, *STUDY, "--out", out)
    return out


def stages(small, since):
    """The kinds of the stages that have been run."""
    found = []
    for command in small[1][since:]:
        names = command[command.index("--only") + 1 :]
        end = next((i for i, name in enumerate(names) if name.startswith("--")), len(names))
        found += [name.split("-")[0] for name in names[:end]]
    return found


def table(out):
    return pd.read_csv(out / "results.csv").set_index("name")


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (("--metric", "loss", "answers", "--answer", "2"), {"measure": 4, "curves": 4}),
        (("--test-documents", "5"), {"measure": 4, "curves": 4, "distance": 4}),
        (("--metric", "answers", "loss", "--distil.metric", "loss"), {"measure": 4, "curves": 4}),
    ],
)
def test_another_metric_trains_nothing_and_the_plan_said_so(options, kinds, small, study, tmp_path, capsys):
    out = tmp_path / "s"
    shutil.copytree(study, out)
    trained = {path: path.stat().st_mtime_ns for path in out.glob("stages/*/model/*")}
    capsys.readouterr()
    run(small, *STUDY, *options, "--plan", "--out", out)
    plan = " ".join(capsys.readouterr().out.split())
    count = sum(kinds.values())
    assert f"{count} of " in plan and "stages would run; 0 of them train or attack a model" in plan
    since = len(small[1])
    run(small, *STUDY, *options, "--out", out)
    ran = stages(small, since)
    assert {kind: ran.count(kind) for kind in set(ran)} == kinds
    assert trained and {path: path.stat().st_mtime_ns for path in out.glob("stages/*/model/*")} == trained
    assert_described(out)


def test_each_metric_has_its_columns_and_its_table(small, study, tmp_path):
    shutil.copytree(study, tmp_path / "s")
    run(small, *STUDY, "--metric", "loss", "answers", "--answer", "2", "--out", tmp_path / "s")
    frame, before = table(tmp_path / "s"), table(study)
    assert frame[list(before)].equals(before), "the first metric is as before"
    assert frame.answers_forget_3.between(0, 1).all() and {"answers_robustness", "answers_forget_int4"} <= set(frame)
    summary = (tmp_path / "s" / "summary.md").read_text()
    assert summary.count("| reference |") == 2 and "\n\nAccuracy:\n\n" in summary


@pytest.mark.parametrize("rank", ["None", "2"])
def test_attacked_models_are_measured_the_same_whether_they_are_kept_or_not(rank, small, study, tmp_path):
    frames = {}
    for keep in ("1", "0"):
        out = tmp_path / keep
        shutil.copytree(study, out)
        since = len(small[1])
        run(small, *STUDY, "--relearn.rank", rank, "--relearn.keep-gb", keep, "--out", out)
        ran = stages(small, since)
        frames[keep] = table(out).drop(columns="attack")
        if keep == "0":
            assert ran == ["attack"] * 4
            run(small, *STUDY, "--relearn.rank", rank, "--relearn.keep-gb", keep, "--test-documents", "5", "--out", out)
            assert stages(small, since).count("attack") == 8, "they are attacked again"
        else:
            kept = list(out.glob("stages/attack-*/attacked/0.001/3/*.safetensors"))
            assert len(kept) == (4 if rank == "None" else 8)
    assert frames["0"].equals(frames["1"]) and np.isfinite(frames["0"].forget_3).all()
