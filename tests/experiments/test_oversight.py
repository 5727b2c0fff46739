"""The study: one tidy table of every run, the same however it was come by."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tyro
from matplotlib.figure import Figure

from routed_rl.experiments import cli, parallel
from routed_rl.experiments.cli import commands as all_commands
from routed_rl.experiments.common.agents import options as commands
from routed_rl.experiments.common.agents import worlds as gridworld
from routed_rl.experiments.common.agents.grid import arguments, train_all
from routed_rl.experiments.common.agents.options import Train
from routed_rl.experiments.demo.study import open_study
from routed_rl.experiments.oversight.figures import draw_arrows
from routed_rl.options.oversight import Learner
from routed_rl.rl import OversightReport, evaluation
from routed_rl.rl.oversight_study import training
from routed_rl.rl.oversight_study.methods import variant
from routed_rl.rl.oversight_study.table import KEYS
from routed_rl.runs import grid, read_run, tables, write_json
from routed_rl.runs.studies import progress
from tests.browser import assert_report_opens, needs_browser
from tests.experiments.described import assert_described

QUICK, FRESH_ENVS = commands.PRESETS["quick"], gridworld.FRESH_ENVS["gridworld"]
TINY = replace(
    QUICK,
    total_steps=1024,
    max_steps=8,
    learner=Learner(n_envs=16, n_steps=8, batch_size=64, hidden=8, replay_batch=8, replay_steps=2),
)
NAMES = ("routing", "naive-early-stopped")
MORE = ("--controls", "placebo", "miss-0.3-hard", "--seeds", "2")
TRAINS = len(NAMES) * 2 + 2
"""Runs of each seed with the options above: the methods at two levels, and the controls."""


def pool_in_process(ran):
    """What runs commands in this process, and adds them to a list."""

    def pool(argvs, workers, logs, *, after, on_poll, poll_seconds):
        codes = []
        for argv, log in zip(argvs, logs, strict=True):
            ran.append(argv)
            try:
                parallel.main(argv[argv.index("-m") + 2 :])
                codes.append(0)
            except SystemExit as stop:
                Path(log).write_text("routed-rl: error: no luck\n")
                codes.append(stop.code)
            on_poll()
        return codes

    return pool


@pytest.fixture(scope="module")
def in_process():
    """Every run in this process, with few fresh environments, on a tiny preset; yields the commands run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(commands.PRESETS, "quick", TINY)
        patch.setitem(gridworld.FRESH_ENVS, "gridworld", (8, 16))
        patch.setattr(evaluation, "PAPER_STEPS", 8)
        patch.setattr(training, "FEWEST_POINTS", 1)
        ran = []
        patch.setattr(grid, "run_commands", pool_in_process(ran))
        yield ran


def run_study(out, *options):
    cli.main(["oversight", "--methods", *NAMES, "--levels", "0.1", "0.4", "--seeds", "1", "--out", str(out), *options])


@pytest.fixture(scope="module")
def whole(in_process, tmp_path_factory):
    """A study of two methods and two controls with two seeds, never interrupted."""
    out = tmp_path_factory.mktemp("oversight") / "whole"
    before = len(in_process)
    run_study(out, *MORE)
    assert len(in_process) - before == 2 * TRAINS
    return out


@pytest.mark.parametrize(
    "train",
    [
        Train(out=Path("x")),
        Train("penalty", 0.3, 7, out=Path("a b"), unlabelled="none", hard_first=True, miss_rate=0.25, force=True),
        replace(commands.PRESETS["paper"], max_steps=9, out=Path("x")),
        Train(out=Path("x"), learner=Learner(entropy=(0.1, 0.01), max_grad_norm=None, bootstrap=False, n_envs=3)),
    ],
)
def test_a_run_is_its_command_line(train):
    line = arguments(train)
    assert tyro.cli(all_commands(train.preset), args=line) == train


def test_a_study_has_every_run_table_and_figure(whole):
    files = {path.name for path in whole.iterdir()}
    tables = {"results.csv", "results.columns.md", "timings.csv", "summary.md", "planned.json"}
    tables |= {"report.html", "charts.json"}
    figures = {"returns", "curves", "methods", "arrows", "noise"}
    assert files == {".lock", "study.json", "runs", *tables, *(f"{name}.png" for name in figures)}
    assert_described(whole)
    frame = pd.read_csv(whole / "results.csv")
    assert not frame.duplicated(KEYS).any()
    assert set(frame.method) == {*NAMES, "placebo", "miss-0.3-hard"}
    routed = frame[(frame.method == "routing") & (frame.oversight == 0.1) & (frame.seed == 1)]
    assert set(routed.policy) == {
        *("steer:ghost", "steer:diamond", "unsteered", "contrast:diamond", "sharpened:diamond"),
    }
    assert set(zip(frame.checkpoint, frame.decoding, strict=True)) == {
        ("final", "sampled"),
        ("final", "greedy"),
        ("peak", "sampled"),
    }
    run = ["method", "oversight", "seed", "policy"]
    of_checkpoint = frame[frame.decoding == "sampled"].pivot(index=run, columns="checkpoint", values="true_return")
    assert (of_checkpoint.peak.dropna() >= of_checkpoint.final[of_checkpoint.peak.notna()]).all()
    result = read_run(whole / "runs" / "routing" / "0.1-s1")
    assert (result.seed, result.config["oversight"]) == (1, 0.1)
    text = (whole / "summary.md").read_text()
    assert "*routed* is the method `routing`, steered to diamond; *routed, contrastive* and *routed, sharpened" in text
    assert "Labels used by early stopping" in text and "Label noise" in text

    given = {name: [run for run in (whole / "runs" / name).iterdir() if run.is_dir()] for name in frame.method}
    of_given = OversightReport(given, methods=NAMES)
    pd.testing.assert_frame_equal(of_given.results(), frame, check_dtype=False)
    assert len(of_given.grid()) == 2 * TRAINS and of_given.grid().finished.all()
    for name in figures - {"arrows"}:
        assert isinstance(of_given.figure(name), Figure)
    title = draw_arrows(whole / "runs" / "routing" / "0.1-s1").get_suptitle()
    assert title == "Policies of one run: routing, oversight level 10 %, seed 1"
    with pytest.raises(ValueError, match="there is no figure 'arrows'; the figures are returns, methods"):
        of_given.figure("arrows")


def test_all_planned_runs_of_a_finished_study_are_finished(whole):
    done, planned = progress(whole)
    assert done == planned > 1


def test_the_demo_shows_what_is_finished_of_a_study_and_says_how_much(whole, tmp_path):
    finished = open_study(whole)
    _, count = progress(whole)
    assert finished.state == f"All {count} runs are finished." and list(finished.charts) == ["returns", "curves"]
    half = shutil.copytree(whole, tmp_path / "half")
    shutil.copytree(half / "runs" / "routing" / "0.1-s0", half / "runs" / "routing" / "backup")
    (half / "runs" / "naive-early-stopped" / "0.4-s1" / "evaluation.json").unlink()
    found = open_study(half)
    assert f"{count - 1} of {count} runs are done" in found.state
    seeds = found.charts["returns"].means("naive-early-stopped").set_index("x").seeds
    assert seeds[40] == 1 and seeds[10] == 2
    assert found.charts["returns"].means("routed").seeds.tolist() == [2, 2], "a copy of a run is none of the study's"
    shutil.rmtree(half / "runs")
    assert "0 of" in open_study(half).state and list(open_study(half).charts) == ["returns", "curves"]
    (half / "planned.json").write_text("[]")
    with pytest.raises(ValueError, match=r"planned\.json' names no runs"):
        open_study(half)


@needs_browser
def test_the_report_of_a_study_opens_from_disk(whole):
    assert_report_opens(whole / "report.html", charts=2)


@pytest.mark.usefixtures("undrawn")
def test_a_study_interrupted_and_asked_for_in_two_portions_is_the_same(whole, in_process, tmp_path, monkeypatch):
    """Interrupted after three runs; then with one seed more and the controls."""
    begun = []
    real = grid.run_commands

    def broken(argvs, workers, logs, **options):
        begun.append(len(argvs))
        real(argvs[:3], workers, logs[:3], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grid, "run_commands", broken)
        with pytest.raises(SystemExit) as stop:
            run_study(tmp_path / "again")
    assert stop.value.code == 130 and begun == [2 * len(NAMES)]
    before = len(in_process)
    run_study(tmp_path / "again", *MORE)
    assert len(in_process) - before == 2 * TRAINS - 3
    for name in ("results.csv", "summary.md"):
        assert (tmp_path / "again" / name).read_bytes() == (whole / name).read_bytes()
    before = len(in_process)
    run_study(tmp_path / "again", *MORE)
    assert len(in_process) == before


@pytest.mark.usefixtures("undrawn")
def test_a_bad_run_is_reported_and_the_rest_finished(whole, in_process, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "s")
    runs = tmp_path / "s" / "runs"
    (runs / "naive-early-stopped" / "0.1-s0" / "evaluation.json").write_text("{")  # as good as missing
    (runs / "miss-0.3-hard" / "0.1-s0" / "config.json").write_text("{}")
    (runs / "miss-0.3-hard" / "0.1-s1" / "metrics.csv").write_text("")
    shutil.rmtree(runs / "routing" / "0.4-s0")
    before = len(in_process)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_study(tmp_path / "s", *MORE)
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert lines.pop(0) == "12 of 12 runs done, 0 running, 0 left"
    assert stop.value.code == 2 and len(lines) == 3 and "2 runs failed" in lines[2]
    assert "miss-0.3-hard/0.1-s0" in lines[0] and "miss-0.3-hard/0.1-s1" in lines[1]
    assert len(in_process) == before + 2
    frame, sound = (pd.read_csv(out / "results.csv") for out in (tmp_path / "s", whole))
    rest = sound[sound.method != "miss-0.3-hard"].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, rest, check_like=True)
    assert "miss-0.3-hard/0.1-s0" in (tmp_path / "s" / "summary.md").read_text()


def test_a_damaged_model_costs_its_figure_alone(in_process, tmp_path, capsys):
    cli.main(["oversight", "--methods", "routing", "--levels", "1e-05", "--seeds", "1", "--out", str(tmp_path / "s")])
    frame = pd.read_csv(tmp_path / "s" / "results.csv")
    assert set(frame.method) == {"routing"} and set(frame.oversight) == {1e-05}
    assert (tmp_path / "s" / "curves.png").exists()
    (tmp_path / "s" / "runs" / "routing" / "1e-05-s0" / "model" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["oversight", "--methods", "routing", "--levels", "1e-05", "--seeds", "1", "--out", str(tmp_path / "s")]
        )
    assert stop.value.code == 2 and "its model is damaged" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_noise_alone_is_a_study(in_process, tmp_path, capsys):
    """And what earlier commands trained stays in the tables."""
    for name in ("flip-0.1", "miss-0"):
        cli.main(["oversight", "--methods", name, "--levels", "0.4", "--seeds", "1", "--out", str(tmp_path / "s")])
    frame = pd.read_csv(tmp_path / "s" / "results.csv")
    assert set(frame.method) == {"flip-0.1", "miss-0"}


def test_a_failing_command_leaves_its_log(tmp_path, monkeypatch):
    runs = [Train(out=tmp_path / name, total_steps=100) for name in ("a", "b")]

    def pool(argvs, workers, logs, **_):
        Path(logs[0]).write_text("noise\nrouted-rl: error: the disk is full\n")
        return [1, 0]

    failed = train_all(runs, 1, pool)
    assert list(failed) == [tmp_path / "a"] and failed[tmp_path / "a"].startswith(
        "the disk is full (exit status 1; log:"
    )
    assert "no output (exit status 127" in train_all(runs[1:], 1, lambda *_, **__: [127])[tmp_path / "b"]


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (["--methods", "magic"], "'magic'"),
        (["--methods", "flip-1.5"], "'flip-1.5'"),
        (["--controls", "miss"], "'miss'"),
        (["--levels", "0"], "0.0"),
        (["--levels", "1.01"], "1.01"),
        (["--levels", "0.1", "0.1"], "0.1 0.1"),
        (["--focus", "0.2"], "0.2"),
        (["--methods", "miss-0.7-hard", "routing"], "0.7"),
        (["--focus", "-1"], "-1"),
        (["--seeds", "0"], "0"),
        (["--workers", "0"], "0"),
        (["--workers", "100000"], "100000"),
        (["--total-steps", "0"], "0"),
        (["--controls", "miss-0.7-hard"], "0.7"),
        (["--backend", "slurm"], "slurm"),
        (["--backend", "ray", "--ray-address", "127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
def test_bad_options_end_in_one_line(options, quoted, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["oversight", "--out", str(tmp_path / "s"), *options])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and quoted in error
    assert not list(tmp_path.rglob("runs/*")) and not list(tmp_path.rglob("study.json"))


def test_a_directory_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / "study.json", {"preset": "paper", "total_steps": 5, "world": "gridworld"})
    (tmp_path / "list").mkdir()
    write_json(tmp_path / "list" / "study.json", [1])
    refused = {".": "holds no study", "other": "'total_steps': 5", "list": "says nothing of a study"}
    for out, quoted in ((tmp_path / name, quoted) for name, quoted in refused.items()):
        with pytest.raises(SystemExit) as stop:
            cli.main(["oversight", "--out", str(out)])
        assert stop.value.code == 2 and quoted in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.slow  # what Ray runs and returns is tested in runs/test_ray.py
@pytest.mark.usefixtures("undrawn")
def test_ray_gives_the_same_results_as_this_machine(tmp_path, monkeypatch):
    """For real: a fresh process as a task of a Ray of its own there, this process here."""
    monkeypatch.setitem(commands.PRESETS, "quick", QUICK)  # what the fresh process has
    monkeypatch.setitem(gridworld.FRESH_ENVS, "gridworld", FRESH_ENVS)
    monkeypatch.setattr(grid, "run_commands", pool_in_process([]))
    options = ["--methods", "naive", "--levels", "0.1", "--seeds", "1", "--total-steps", "512", "--workers", "1"]
    for backend in ("local", "ray"):
        cli.main(["oversight", *options, "--backend", backend, "--out", str(tmp_path / backend)])
    for name in ("results.csv", "summary.md", "study.json"):
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()
    local = tmp_path / "local" / "runs" / "naive" / "0.1-s0"
    for file in ("metrics.csv", "config.json", "model/tensors.safetensors"):
        assert (local / file).read_bytes() == (tmp_path / "ray" / "runs" / "naive" / local.name / file).read_bytes(), (
            file
        )


def test_intervals_and_quantiles():
    spread = tables.spread(pd.Series([1.0, 2.0, 3.0, 4.0]))
    assert spread["mean"] == 2.5 and spread["half"] == pytest.approx(3.182 * np.std([1, 2, 3, 4], ddof=1) / 2, rel=1e-3)
    assert (spread["low"], spread["high"]) == pytest.approx((1.15, 3.85))
    assert np.isnan(tables.spread(pd.Series([0.5]))["half"])
    many = np.random.default_rng(0).normal(size=(40, 3))
    assert tables.half_interval(many) == pytest.approx(2.0227 * many.std(axis=0, ddof=1) / 40**0.5, rel=1e-3)


def test_an_unknown_variant_lists_the_known():
    with pytest.raises(ValueError, match=r"'x'.*routing.*strict.*flip-RATE"):
        variant("x", Train())
    learner = replace(Learner(), solo=1.0)
    predicted = {"method": "routing", "unlabelled": "predicted", "learner": learner}
    assert variant("routing-predicted", Train()) == predicted
    assert variant("flip-0.2-hard", Train()) == {"method": "routing", "flip_rate": 0.2, "hard_first": True}
