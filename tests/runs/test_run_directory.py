"""Run directories: starting, continuing, finishing, rejecting and renaming runs. (For kills see test_run_kills.)"""

import os
import re
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from routed_rl.runs import (
    RunDirectory,
    RunError,
    config_hash,
    read_json,
    read_metrics,
    read_run,
    record,
    write_json,
)
from tests.runs import toy_run
from tests.runs.toy_run import contents

CONFIG = {"method": "routing", "ppo": {"lr": 0.1, "layers": [64, 64]}}


def start(path: Path, checkpoints: int = 0) -> None:
    """Start a run and leave it unfinished, with a checkpoint after each of its rows."""
    with RunDirectory.open(path, CONFIG, 1) as run:
        run.load_checkpoint()
        for step in range(1, checkpoints + 1):
            run.metrics.append({"step": step})
            run.save_checkpoint(step, {"w": torch.full((2,), float(step))}, {"step": step})


def test_a_run_from_its_start_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    with RunDirectory.open(path, CONFIG, 1) as run:
        with pytest.raises(RunError, match=r"load_checkpoint\(\)"):
            run.metrics  # noqa: B018
        assert run.load_checkpoint() is None
        for step in range(1, 5):
            run.metrics.append({"step": step})
            run.save_checkpoint(step, {"w": torch.zeros(2)}, {})
        names = sorted(entry.name for entry in (path / "checkpoints").iterdir())
        assert names == ["step-000000000003", "step-000000000004"]
        with pytest.raises(ValueError, match="must be at least 4, the step of the last one, got 3"):
            run.save_checkpoint(3, {}, {})
        with pytest.raises(ValueError, match=r"\.score is nan"):
            run.finish({"score": float("nan")})
        assert not run.finished
        run.finish({"score": (0.5, 1)})
        assert run.finished
        assert run.result == {"score": [0.5, 1]}
    before = contents(path)
    assert sorted(before) == [*(".lock", "config.json", "evaluation.json", "metrics.csv", "versions.json")]
    assert before[".lock"] == b""
    with RunDirectory.open(path, CONFIG, 1) as run:
        assert run.finished
        assert run.result == {"score": [0.5, 1]}
        with pytest.raises(RunError, match="finished"):
            run.load_checkpoint()
    assert contents(path) == before


def test_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path / "run")
    written = {"config": CONFIG, "config_hash": config_hash(CONFIG), "seed": 1}
    assert read_json(tmp_path / "run" / "config.json") == written
    assert read_run(tmp_path / "run") == record.RunRecord(CONFIG, config_hash(CONFIG), 1)
    versions = read_json(tmp_path / "run" / "versions.json")
    assert set(versions) == {"python", "git_commit", *record.PACKAGES}
    assert versions["torch"] == torch.__version__.partition("+")[0]

    checkout = tmp_path / "checkout"
    checkout.mkdir()
    git = ["git", "-C", str(checkout), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    monkeypatch.setattr(record, "__file__", str(tmp_path / "site-packages" / "record.py"))
    monkeypatch.chdir(checkout)
    assert record.versions()["git_commit"] == commit.strip()
    (checkout / "file").touch()
    subprocess.run([*git, "add", "file"], check=True)
    assert record.versions()["git_commit"] == f"{commit.strip()}-dirty"
    monkeypatch.chdir(tmp_path)
    assert record.versions()["git_commit"] is None


def test_the_hash_is_of_the_content() -> None:
    assert config_hash({"b": 1, "a": (2, 3)}) == config_hash({"a": [2, 3], "b": 1}) == "2aae3bfa90"
    others: list[dict[str, object]] = [{"a": [2, 3], "b": 1.0}, {"a": [2, 3], "b": True}, {"a": [2, 3]}, {}]
    assert len({config_hash(other) for other in others} | {"2aae3bfa90"}) == 5


def test_another_configuration_is_refused_naming_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "run"
    start(path, checkpoints=1)
    before = contents(path)
    other = {"method": "naive", "ppo": {"lr": 0.2, "layers": [64, 64], "clip": 0.2}}
    for config, seed, why in [
        (CONFIG, 2, "seed is 1 there, 2 here"),
        (
            other,
            1,
            'config.method is "routing" there, "naive" here; config.ppo.clip is absent there, 0.2 here',
        ),
        (other, 2, "config.ppo.lr is 0.1 there, 0.2 here; and 1 more"),
        ({**CONFIG, "method": None}, 1, 'config.method is "routing" there, null here'),
    ]:
        with pytest.raises(RunError, match=re.escape(why)) as raised:
            RunDirectory.open(path, config, seed)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
    assert contents(path) == before


def make_file(path: Path) -> None:
    path.write_text("x")


def make_foreign(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("x")


def make_model(path: Path) -> None:
    """Make a directory of a model: it also has a config.json."""
    path.mkdir()
    (path / "config.json").write_text('{"hidden_size": 64}')


def make_garbled(path: Path) -> None:
    start(path)
    (path / "config.json").write_text("{")


def make_edited(path: Path) -> None:
    start(path)
    stored = read_json(path / "config.json")
    write_json(path / "config.json", stored | {"config": {"method": "naive"}})


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (make_file, "is not a directory"),
        (make_foreign, "is not a run and not empty, it contains 'notes.txt'"),
        (make_model, "is not a run: its config.json"),
        (make_garbled, "is not a run: its config.json"),
        (make_edited, "was edited"),
    ],
)
def test_what_is_not_a_run_is_left_alone(tmp_path: Path, make: Callable[[Path], None], why: str, force: bool) -> None:
    make(tmp_path / "run")
    before = contents(tmp_path)
    with pytest.raises(RunError, match=why) as raised:
        RunDirectory.open(tmp_path / "run", CONFIG, 1, force=force)
    assert str(tmp_path / "run") in str(raised.value)
    assert "\n" not in str(raised.value)
    assert contents(tmp_path) == before


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"file/run' cannot be used for a run: Not a directory"):
        RunDirectory.open(tmp_path / "file" / "run", CONFIG, 1)
    with pytest.raises(RunError, match="cannot be used for a run: File name too long"):
        RunDirectory.open(tmp_path / ("x" * 300), CONFIG, 1)
    with pytest.raises(ValueError, match="seed must be an integer, got '1'"):
        RunDirectory.open(tmp_path / "run", CONFIG, "1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"config\.lr is inf"):
        RunDirectory.open(tmp_path / "run", {"lr": float("inf")}, 1)
    with pytest.raises(RunError, match="there is no run at"):
        read_run(tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", CONFIG, 1):
        for force in (False, True):
            with pytest.raises(RunError, match="in use by another process"):
                RunDirectory.open(tmp_path / "run", CONFIG, 1, force=force)
    RunDirectory.open(tmp_path / "run", CONFIG, 1).close()


def test_force_keeps_what_was_there_under_another_name(tmp_path: Path) -> None:
    start(tmp_path / "run", checkpoints=1)
    first = contents(tmp_path / "run")
    for seed in (7, 8):
        with RunDirectory.open(tmp_path / "run", CONFIG, seed, force=True) as run:
            assert run.load_checkpoint() is None
    assert contents(tmp_path / "run.old-1") == first
    assert read_run(tmp_path / "run.old-2").seed == 7
    assert read_run(tmp_path / "run").seed == 8
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "empty").mkdir()
    RunDirectory.open(tmp_path / "empty", CONFIG, 1, force=True).close()
    assert not (tmp_path / "empty.old-1").exists()


def damage(checkpoint: Path) -> None:
    os.truncate(checkpoint / "tensors.safetensors", 10)


def pollute(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pkl").write_bytes(b"x")


def interrupt(step: int) -> None:
    if step == 5:
        raise KeyboardInterrupt


@pytest.mark.parametrize("spoil", [damage, pollute])
@pytest.mark.parametrize(("bad", "rows"), [([4], 2), ([2, 4], 0), ([2], 4)])
def test_a_bad_checkpoint_is_reported_and_the_one_before_it_used(
    tmp_path: Path, spoil: Callable[[Path], None], bad: list[int], rows: int
) -> None:
    path, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    toy_run.train(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        toy_run.train(path, interrupt)
    for step in bad:
        spoil(checkpoints / f"step-{step:012d}")
    with warnings.catch_warnings(record=True, action="always") as caught:
        with RunDirectory.open(path, toy_run.CONFIG, toy_run.SEED) as run:
            checkpoint = run.load_checkpoint()
        assert (0 if checkpoint is None else checkpoint.step) == rows
        assert len(read_metrics(path / "metrics.csv")) == rows
        toy_run.train(path)
    assert contents(path) == contents(tmp_path / "unbroken")
    expected = [step for step in (4, 2) if step in bad and step > rows]  # newest first; each is tried twice
    reported = [re.findall(r"step-0*(\d+)' cannot be used: .*; the run continues", str(w.message)) for w in caught]
    assert reported == [[str(step)] for step in expected] * 2


def test_a_checkpoint_of_another_run_or_without_its_rows_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "run"
    start(path, checkpoints=2)
    (path / "checkpoints/step-000000000002").rename(path / "checkpoints/step-000000000009")
    (path / "metrics.csv").write_text("step\n")
    with RunDirectory.open(path, CONFIG, 1) as run, pytest.warns(UserWarning, match="cannot be used") as warned:
        assert run.load_checkpoint() is None
    assert "step-000000000009' cannot be used: another run saved it" in str(warned[0].message)
    assert "step-000000000001' cannot be used: metrics.csv has lost rows" in str(warned[1].message)


def test_files_of_others_beside_the_checkpoints_stay(tmp_path: Path) -> None:
    start(tmp_path / "run", checkpoints=1)
    (tmp_path / "run/checkpoints/notes.txt").write_text("x")
    with RunDirectory.open(tmp_path / "run", CONFIG, 1) as run:
        run.load_checkpoint()
        run.save_checkpoint(1, {}, {"again": True})
        checkpoint = run.load_checkpoint()
        assert checkpoint is not None
        assert checkpoint.meta == {"again": True}
        run.finish({})
    assert [entry.name for entry in (tmp_path / "run/checkpoints").iterdir()] == ["notes.txt"]


def test_a_spoilt_result_is_made_again(tmp_path: Path) -> None:
    toy_run.train(tmp_path / "run")
    before = contents(tmp_path / "run")
    for spoilt in ("{", "[]", '{"score": NaN}'):
        (tmp_path / "run/evaluation.json").write_text(spoilt)
        with pytest.warns(UserWarning, match="as if it were not finished"):
            toy_run.train(tmp_path / "run")
        assert contents(tmp_path / "run") == before


def test_a_run_continued_under_other_versions_says_so(tmp_path: Path) -> None:
    start(tmp_path / "run")
    versions = read_json(tmp_path / "run/versions.json")
    write_json(tmp_path / "run/versions.json", versions | {"torch": "1.0", "python": "3.0"})
    before = contents(tmp_path / "run")
    with pytest.warns(UserWarning, match="was started with another version of python and torch"):
        RunDirectory.open(tmp_path / "run", CONFIG, 1).close()
    assert contents(tmp_path / "run") == before


def test_write_json_replaces_whole_files_and_leaves_no_temporaries(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 0.1, None], "a": "é"})
    text = '{\n  "a": "\\u00e9",\n  "b": [\n    1,\n    0.1,\n    null\n  ]\n}\n'
    assert (tmp_path / "a.json").read_bytes() == text.encode()
    with pytest.raises(TypeError, match=r"a\.json\.b is a set"):
        write_json(tmp_path / "a.json", {"b": {1}})
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "directory", {})
    assert (tmp_path / "a.json").read_bytes() == text.encode()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "directory"]
