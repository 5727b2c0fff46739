"""The command line: one clear line and status 2 for every mistake, and the commands that read a run."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
from PIL import Image, ImageSequence

from routed_rl.envs import DiamondGhostEnv
from routed_rl.envs.rendering import TILE
from routed_rl.experiments import cli, parallel
from routed_rl.experiments.cli import MODULES, command_name, main, parse
from routed_rl.experiments.common.agents import options as commands
from routed_rl.experiments.common.agents.grid import train_all
from routed_rl.experiments.common.agents.worlds import FRESH_ENVS
from routed_rl.experiments.gridworld import quickstart
from routed_rl.experiments.gridworld.options import Watch
from routed_rl.experiments.gridworld.watch import _play
from routed_rl.options.oversight import MethodName
from routed_rl.rl import METHODS, OversightReport, RoutedPPO, RoutedREINFORCE
from routed_rl.rl.oversight_study.methods import SAME_LEARNER
from routed_rl.runs import RunDirectory, RunError, RunRecord, write_json
from tests.experiments.mistakes import python_names


def call(capsys, *argv):
    """Exit status, standard output and standard error of a command run in this process."""
    try:
        main([str(argument) for argument in argv])
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    captured = capsys.readouterr()
    assert not python_names(captured.err), captured.err
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
        (["train", "--method", "oracle-filtered", "--oversight", "0"], "--oversight must be above 0"),
        (["train", "--preset", "slow"], "slow"),
        (["train", "--learner.batch-size", "0"], "--learner.batch-size"),
        (["train", "--learner.entropy", "0.1", "-1"], "-1"),
        (["train", "--preset", "paper", "--learner.value-coef", "nan"], "nan"),
        (["train", "--preset"], "preset"),
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
        (["watch", "RUN", "--fps", "nan"], "nan"),
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


def no_run(tmp_path, trained):
    """Folders that are no run of an agent, each with what the error says besides its name."""
    for number in range(5):
        shutil.copytree(trained, tmp_path / "study" / "runs" / "naive" / f"0.1-s{number}")
        shutil.copytree(trained, tmp_path / "quickstart" / f"{number}")
    (tmp_path / "study" / "results.csv").touch()
    model = tmp_path / "quickstart" / "0" / "language model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    with RunDirectory.open(tmp_path / "era", {"method": "era"}, 0):
        pass
    first = tmp_path / "study" / "runs" / "naive"
    named = f"name one of {', '.join(str(first / f'0.1-s{number}') for number in range(3))} and 2 more"
    yield from ((folder, named) for folder in (tmp_path / "study", tmp_path / "study" / "runs", first))
    yield (
        tmp_path / "quickstart",
        f"name one of {', '.join(str(tmp_path / 'quickstart' / n) for n in '012')} and 2 more",
    )
    yield from ((tmp_path / name, "name the directory of one") for name in ("empty", "notes"))
    yield tmp_path / "era", "trained no agent"
    yield tmp_path / "nowhere", "there is no run"
    yield tmp_path / "notes" / "thesis.tex", "is not a directory"


def test_a_folder_that_is_no_run_is_told_with_the_runs_in_it(capsys, trained, tmp_path):
    for folder, said in no_run(tmp_path, trained):
        for command in ("evaluate", "watch", "curves"):
            status, _, err = call(capsys, command, folder)
            assert status == 2 and len(err.splitlines()) == 1 and repr(str(folder)) in err and said in err, err
        report = OversightReport({"routing": [folder]})
        with pytest.raises(RunError, match=re.escape(said)):
            report.grid()
        with pytest.raises(ValueError, match=re.escape(said if folder.is_dir() else "no run is finished")):
            report.results()
    status, _, err = call(capsys, "curves", trained / "model")
    assert status == 2 and "is not a run: name the directory of one" in err


def test_a_model_of_another_run_is_refused(capsys, trained, tmp_path):
    small = ["--total-steps", "64", "--learner.n-envs", "2", "--learner.hidden", "8"]
    for name, options in (("larger", ["--size", "6"]), ("naive", ["--method", "naive"])):
        assert call(capsys, "train", *small, *options, "--out", tmp_path / name)[0] == 0
        shutil.copytree(trained, tmp_path / f"into-{name}")
        shutil.rmtree(tmp_path / f"into-{name}" / "model")
        shutil.copytree(tmp_path / name / "model", tmp_path / f"into-{name}" / "model")
        for command in ("evaluate", "watch"):
            status, _, err = call(capsys, command, tmp_path / f"into-{name}")
            assert status == 2 and len(err.splitlines()) == 1 and "belongs to another run" in err


def test_quickstart_starts_nothing_where_it_may_not_write(capsys, tmp_path):
    (tmp_path / "q" / "routing").mkdir(parents=True)
    (tmp_path / "q" / "routing" / "thesis.tex").touch()
    status, out, err = call(capsys, "quickstart", "--total-steps", "64", "--out", tmp_path / "q")
    assert status == 2 and out == "" and len(err.splitlines()) == 1 and "thesis.tex" in err
    assert [path.name for path in (tmp_path / "q").rglob("*")] == ["routing", "thesis.tex"]


def test_divergence_is_told_in_one_line(capsys, tmp_path):
    small = ["--total-steps", "4096", "--learner.n-envs", "8", "--learner.hidden", "8"]
    status, _, err = call(capsys, "train", *small, "--learner.learning-rate", "1e30", "--out", tmp_path / "run")
    assert status == 2 and len(err.splitlines()) == 1 and "diverged" in err and "learning-rate" in err


def test_presets_are_defaults_that_may_be_overridden(capsys, tmp_path):
    """The paper's settings (Cloud et al. 2024, section F), whichever way they are asked for."""
    train = commands.PRESETS["paper"]
    assert train.total_steps == 20_000 * 512 * 32
    quick = inspect.signature(RoutedPPO).parameters
    shared = {f.name for f in fields(commands.Learner)} & set(quick)
    assert len(shared) >= 12
    assert all(getattr(commands.Learner(), name) == quick[name].default for name in shared)
    paper = inspect.signature(RoutedREINFORCE).parameters
    shared = {f.name for f in fields(commands.Learner)} & set(paper)
    assert all(getattr(train.learner, name) == paper[name].default for name in shared)
    options = ["--learner.n-envs", "8", "--total-steps", "2560", "--method", "oracle-filtered", "--oversight", "0.2"]
    for preset in (["--preset", "paper"], ["--preset=paper"]):
        out = tmp_path / "-".join(preset)
        assert call(capsys, "train", *options, *preset, "--out", out)[0] == 0
        config, result = (json.loads((out / f"{name}.json").read_text()) for name in ("config", "evaluation"))
        learner = config["config"]["learner"]
        assert (learner["algorithm"], learner["hidden"], learner["n_envs"]) == ("reinforce", 256, 8)
        assert result["env_steps"] == 512, "oracle-filtered trains for oversight x steps"
        assert call(capsys, "evaluate", out, "--n-envs", "8")[0] == 0


def test_evaluate_prints_a_table_or_json(capsys, trained):
    status, out, _ = call(capsys, "evaluate", trained, "--steer", "diamond", "--n-envs", "32", "--json")
    result = json.loads(out)
    assert status == 0 and result["policy"] == "steer:diamond" and -1 <= result["true_return"] <= 1
    ablated = json.loads(call(capsys, "evaluate", trained, "--ablate", "ghost", "--n-envs", "32", "--json")[1])
    assert {**ablated, "policy": "steer:diamond"} == result, "of two modules, ablating one is choosing the other"
    for greedy, actions in (["--greedy"], "greedy actions"), ([], "sampled actions"):
        status, out, _ = call(capsys, "evaluate", trained, *greedy, "--n-envs", "32")
        assert status == 0 and "true return" in out and "ghost" in out and actions in out.splitlines()[0]


def test_watch_in_the_terminal_and_as_gif(capsys, trained, tmp_path):
    status, out, _ = call(capsys, "watch", trained, "--episodes", "1", "--fps", "1000")
    assert status == 0 and "episode 1, step 1" in out
    gif = tmp_path / "film.gif"
    status, out, _ = call(capsys, "watch", trained, "--steer", "ghost", "--episodes", "2", "--gif", gif)
    assert status == 0 and str(gif) in out
    with Image.open(gif) as film:
        durations = [image.info["duration"] for image in ImageSequence.Iterator(film)]
        assert film.height > 5 * TILE and film.width >= 5 * TILE, "the caption is below the grid"
    assert len(durations) > 2 and durations.count(1000) == 2 and set(durations) == {250, 1000}, "a pause at each end"


def test_captions_say_what_happened():
    told = []
    command = Watch(Path("run"), episodes=2, greedy=True)
    model = SimpleNamespace(predict=lambda obs, deterministic: (1, None))
    _play(model, DiamondGhostEnv(size=(1, 3), oversight=1.0), command, lambda *shown: told.append(shown))
    starts = [caption for caption, last in told if not caption.count("step")]
    assert starts == ["episode 1", "episode 2"]
    ends = [caption for caption, last in told if last]
    end = r"episode \d, step \d+: (step limit reached|(ghost|diamond), overseen)"
    assert len(ends) == 2 and all(re.fullmatch(end, caption) for caption in ends), ends


def test_an_animation_that_fails_leaves_the_old_one(capsys, trained, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError("no space left")

    gif = tmp_path / "film.gif"
    gif.write_bytes(b"precious")
    monkeypatch.setattr(Image.Image, "save", full)
    status, _, err = call(capsys, "watch", trained, "--episodes", "1", "--gif", gif)
    assert status == 2 and len(err.splitlines()) == 1 and "no space left" in err
    assert gif.read_bytes() == b"precious" and [path.name for path in tmp_path.iterdir()] == ["film.gif"]


def test_method_names_are_the_registry():
    assert set(get_args(MethodName)) == {*METHODS, *SAME_LEARNER} and set(SAME_LEARNER.values()) <= set(METHODS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("undo --alpha 0.5", "undo has no option --alpha; see routed-rl undo --help; did you mean --alphas?"),
        ("undo --alpha=0.5", "did you mean --alphas?"),
        ("unlearn --alphas 0.5", "did you mean --alpha?"),
        ("undo --lr 1", "did you mean --pretrain.learning-rate or --distil.learning-rate or --relearn.learning-rates?"),
        ("undo --learning_rate 1", "did you mean --pretrain.learning-rate or --distil.learning-rate?"),
        ("undo --relearn.lr 1", "did you mean --relearn.learning-rates?"),
        ("train --learner.lr 1", "did you mean --learner.learning-rate?"),
        ("era --no-pac", "did you mean --pack?"),
        ("era --seed 3", "did you mean --seeds?"),
        ("era --xyzzy 3", "era has no option --xyzzy; see routed-rl era --help"),
        ("undoo", "there is no command 'undoo'; the commands are quickstart, "),
        ("undoo", "did you mean 'undo'?"),
        ("undo --suppress maxnt", "--suppress must be one of graddiff, maxent, rmu, "),
        ("undo --suppress maxnt", "got 'maxnt'; did you mean 'maxent'?"),
        ("era --validation x", "--validation must be None or FLOAT, got 'x'"),
        (
            "oversight --preset x",
            "--preset must be one of None, minigrid, own, paper, quick, got 'x'",
        ),
    ],
)
def test_what_is_nearly_right_is_suggested(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(capsys, *line.split())
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())


def optional(of, prefix=""):
    """The names of the options of a command that may be None."""
    hints = get_type_hints(of)
    for field in fields(of):
        name = prefix + field.name.replace("_", "-")
        if is_dataclass(hints[field.name]):
            yield from optional(hints[field.name], f"{name}.")
        elif type(None) in get_args(hints[field.name]):
            yield name


@pytest.mark.parametrize("of", MODULES)
@pytest.mark.parametrize("none", ["None", "none", "NONE"])
def test_none_is_read_in_any_case(of, none):
    needed = [field.name for field in fields(of) if field.default is MISSING and field.default_factory is MISSING]
    names = list(optional(of))
    line = [command_name(of), *(word for name in names for word in (f"--{name}", none)), *needed]
    command = parse(line)
    assert [attrgetter(name.replace("-", "_"))(command) for name in names] == [None] * len(names)
    assert type(command) is of


@pytest.mark.parametrize(
    ("line", "shown"), [(["--help"], ("quickstart", "train", "evaluate", "watch")), (["runs", "."], ("path", "state"))]
)
def test_help_and_lists_need_no_heavy_import(line, shown, tmp_path):
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", RunRecord.of({"kind": "any"}, 0).as_json())
    code = f"import sys; from routed_rl.experiments.cli import main\ntry: main({line})\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'stable_baselines3', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in shown)


@pytest.mark.parametrize("of", [of for of in cli.MODULES if hasattr(of, "QUICK")], ids=cli.command_name)
def test_quick_sets_defaults_and_other_options_still_count(of):
    usual = cli.defaults().get(of) or of()
    assert cli.parse([cli.command_name(of), "--quick"]) == replace(usual, quick=True, **of.QUICK)
    assert of.QUICK["methods"] != usual.methods
    line = [cli.command_name(of), "--quick", "--methods", *usual.methods]
    assert cli.parse(line) == replace(usual, quick=True, **{**of.QUICK, "methods": usual.methods})


def test_quickstart_small(capsys, tmp_path, monkeypatch):
    """The whole path on a toy budget, in this process, on few fresh environments; for real: test_wheel.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(FRESH_ENVS, "gridworld", (4, 16))
    trained = []

    def pool(commands, workers, logs, **_):
        for line in commands:
            trained.append(line)
            parallel.main(line[line.index("-m") + 2 :])
        return [0] * len(commands)

    monkeypatch.setattr(quickstart, "train_all", partial(train_all, backend=pool))
    command = ["quickstart", "--total-steps", "64", "--out", "q"]
    for attempt in (1, 2):
        status, out, _ = call(capsys, *command)
        assert status == 0 and "steered to Diamond" in out and "reference" in out and len(trained) == 2
        if attempt == 1:
            stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*") if path.is_file()}
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*") if path.is_file()}
    with Image.open(tmp_path / "q" / "quickstart.png") as figure:
        assert figure.width > 1000
    # One of the runs is replaced behind its back: neither the old table nor the old figure is shown.
    other = ["train", "--method", "naive", "--total-steps", "64", "--seed", "1", "--force", "--out", "q/naive"]
    assert call(capsys, *other)[0] == 0
    status, out, err = call(capsys, *command)
    assert status == 2 and out == "" and "seed is 1 there, 0 here" in err and len(err.splitlines()) == 1
    assert call(capsys, *command, "--force")[0] == 0 and len(trained) == 4
    assert (tmp_path / "q" / "quickstart.png").stat().st_mtime_ns > max(stamps.values())
