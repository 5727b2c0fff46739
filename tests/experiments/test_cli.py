"""The command line: one clear line and status 2 for every mistake, and the commands that read a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from experiments.cli import main
from experiments.commands import MethodName
from routed_rl.rl import METHODS


def call(capsys, *argv):
    """Exit status, standard output and standard error of a command run in this process."""
    try:
        main([str(argument) for argument in argv])
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    main(["train", "--total-steps", "512", "--learner.n-envs", "8", "--learner.hidden", "8", "--out", str(out)])
    return out


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["train", "--oversight", "1.5"], "1.5"),
        (["train", "--oversight", "-0.1"], "-0.1"),
        (["train", "--oversight", "nan"], "nan"),
        (["train", "--method", "magic"], "magic"),
        (["train", "--seed", "three"], "three"),
        (["train", "--seed", "1.5"], "1.5"),
        (["train", "--total-steps", "-5"], "-5"),
        (["train", "--total-steps", "0"], "0"),
        (["train", "--size", "1"], "1x1"),
        (["train", "--max-steps", "0"], "0"),
        (["train", "--miss-rate", "2"], "2"),
        (["train", "--flip-rate", "nan"], "nan"),
        (["train", "--unlabelled", "some"], "some"),
        (["train", "--preset", "slow"], "slow"),
        (["train", "--learner.batch-size", "0"], "0"),
        (["train", "--learner.n-envs", "-3"], "-3"),
        (["train", "--learner.learning-rate", "-1"], "-1"),
        (["train", "--no-such-option"], "--no-such-option"),
        (["trian"], "trian"),
        (["quickstart", "--oversight", "7"], "7"),
        (["quickstart", "--workers", "0"], "0"),
        (["quickstart", "--total-steps", "-1"], "-1"),
        (["evaluate", "no/such/run"], "no/such/run"),
        (["watch", "no/such/run"], "no/such/run"),
    ],
)
def test_a_mistake_is_quoted_in_one_line(arguments, quoted, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, *arguments)
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and quoted in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["evaluate", "RUN", "--steer", "ghots"], "ghots"),
        (["evaluate", "RUN", "--ablate", "x"], "'x'"),
        (["evaluate", "RUN", "--steer", "ghost", "--ablate", "ghost"], "exclude"),
        (["evaluate", "RUN", "--n-envs", "0"], "0"),
        (["watch", "RUN", "--gif", "film.mp4"], "film.mp4"),
        (["watch", "RUN", "--gif", "no/folder/film.gif"], "no/folder/film.gif"),
        (["watch", "RUN", "--episodes", "0"], "0"),
        (["watch", "RUN", "--fps", "0"], "0"),
    ],
)
def test_mistakes_about_a_trained_run(arguments, quoted, capsys, trained):
    status, _, err = call(capsys, *[trained if a == "RUN" else a for a in arguments])
    assert status == 2 and len(err.splitlines()) == 1 and quoted in err


def test_unusable_run_directories(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "full"):
        for force in ([], ["--force"]):
            status, _, err = call(capsys, "train", "--out", out, *force)
            assert status == 2 and len(err.splitlines()) == 1 and str(out) in err
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "thesis.tex").read_text() == "mine"


def test_damaged_models_are_refused_in_one_line(capsys, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    tensors = run / "model" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    status, _, err = call(capsys, "evaluate", run)
    assert status == 2 and len(err.splitlines()) == 1 and str(run) in err
    shutil.rmtree(run / "model")
    status, _, err = call(capsys, "evaluate", run)
    assert status == 2 and "not finished" in err


def test_evaluate_prints_a_table_or_json(capsys, trained):
    status, out, _ = call(capsys, "evaluate", trained, "--steer", "diamond", "--n-envs", "32", "--json")
    result = json.loads(out)
    assert status == 0 and result["policy"] == "steer:diamond" and -1 <= result["true_return"] <= 1
    ablated = json.loads(call(capsys, "evaluate", trained, "--ablate", "ghost", "--n-envs", "32", "--json")[1])
    assert {**ablated, "policy": "steer:diamond"} == result, "of two modules, ablating one is choosing the other"
    status, out, _ = call(capsys, "evaluate", trained, "--greedy", "--n-envs", "32")
    assert status == 0 and "true return" in out and "ghost" in out


def test_watch_in_the_terminal_and_as_gif(capsys, trained, tmp_path):
    status, out, _ = call(capsys, "watch", trained, "--episodes", "1", "--fps", "1000")
    assert status == 0 and "episode 1, step 1" in out
    gif = tmp_path / "film.gif"
    status, out, _ = call(capsys, "watch", trained, "--steer", "ghost", "--episodes", "2", "--gif", gif)
    assert status == 0 and str(gif) in out
    with Image.open(gif) as film:
        assert film.n_frames > 2


def test_method_names_are_the_registry():
    assert set(get_args(MethodName)) == {*METHODS, "oracle-filtered"}  # an oracle with fewer steps


def test_help_needs_no_heavy_import():
    code = "import sys; from experiments.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'stable_baselines3', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("quickstart", "train", "evaluate", "watch"))


def test_quickstart_small(tmp_path):
    """The whole path on a toy budget, in a folder where `experiments` is the user's own."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise RuntimeError('the wrong experiments')")
    script = Path(sys.executable).with_name("routed-rl")
    command = [script, "quickstart", "--total-steps", "8192", "--out", "q"]
    for attempt in (1, 2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        assert "steered to Diamond" in done.stdout and "exact limit" in done.stdout
        if attempt == 1:
            stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*") if path.is_file()}
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*") if path.is_file()}
    with Image.open(tmp_path / "q" / "quickstart.png") as figure:
        assert figure.width > 1000
