"""What ``routed-rl runs`` lists: every run and study once, with its state, also of what is damaged or half done."""

from pathlib import Path

import pytest

from routed_rl.experiments import cli
from routed_rl.experiments.overview.headlines import study_headline
from routed_rl.experiments.overview.runs import headline
from routed_rl.runs import RunDirectory, RunError, write_json
from routed_rl.runs.lock import is_locked, locked
from routed_rl.runs.overview import list_runs
from routed_rl.runs.studies import PLANNED, RESULTS, STUDY
from tests.experiments.mistakes import complaints


def make(path, config, result=None, **row):
    with RunDirectory.open(path, config, 0) as run:
        run.load_checkpoint()
        if row:
            run.metrics.append(row)
        if result is not None:
            run.finish(result)


@pytest.fixture
def folder(tmp_path):
    """A finished run, one that stopped at step 20 of 100, a study with one of two runs, and what is no run."""
    make(tmp_path / "done", {"total_steps": 100}, {"policies": {"unsteered": {"true_return": 0.5}}})
    make(tmp_path / "deep" / "half", {"total_steps": 100}, env_steps=20, loss=1.0)
    study = tmp_path / "study"
    study.mkdir()
    write_json(study / STUDY, {})
    write_json(study / PLANNED, {"runs": ["runs/a/0", "runs/b/0"]})
    make(study / "runs" / "a" / "0", {}, {})
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "config.json", {"model_type": "gpt2"})
    return tmp_path


def test_every_run_and_study_is_listed_once_with_its_state(folder):
    found = list_runs(folder, headline)
    assert found.drop(columns="changed").values.tolist() == [
        ["deep/half", "run", "stopped", "20 of 100 steps", ""],
        ["done", "run", "finished", "", "true return 0.500 (unsteered)"],
        ["study", "study", "stopped", "1 of 2 runs", ""],
    ]


def test_what_another_process_works_on_is_running(folder):
    with locked(folder / "deep" / "half", "run"), locked(folder / "study", "study"):
        assert is_locked(folder / "study")
        assert list_runs(folder).state.tolist() == ["running", "finished", "running"]
    assert list_runs(folder).state.tolist() == ["stopped", "finished", "stopped"]


def test_a_run_itself_can_be_named(folder):
    assert list_runs(folder / "done").path.tolist() == ["."]


def test_a_study_with_all_of_its_runs_is_finished(folder):
    make(folder / "study" / "runs" / "b" / "0", {}, {})
    assert list_runs(folder / "study").state.tolist() == ["finished"]


def test_a_study_that_does_not_say_its_runs_is_finished_once_it_has_its_table(folder):
    (folder / "study" / PLANNED).unlink()
    assert list_runs(folder / "study").state.tolist() == ["stopped"]
    (folder / "study" / RESULTS).touch()
    assert list_runs(folder / "study").state.tolist() == ["finished"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("study/planned.json", "[]"),
        ("study/planned.json", '{"ru'),
        ("done/evaluation.json", "[]"),
        ("done/evaluation.json", '{"policies": {"unsteered": {"true_return": null}}}'),
    ],
)
def test_what_is_damaged_is_said_and_hides_nothing_else(file, text, folder):
    (folder / file).write_text(text)
    found = list_runs(folder, headline)
    states = dict(zip(found.path, found.state, strict=True))
    assert states.pop(file.split("/")[0]) == "damaged" and set(states.values()) <= {"finished", "stopped"}
    assert len(found) == 3


@pytest.mark.parametrize("what", ["iterdir", "is_dir"])
def test_a_folder_that_cannot_be_read_is_said_and_hides_nothing_else(what, folder, monkeypatch):
    """Without the right to list its names, or to look at what they name."""
    (folder / "secret" / "inside").mkdir(parents=True)
    real = getattr(Path, what)

    def refused(path):  # whoever runs the tests may have every right
        if path in (folder / "secret", folder / "secret" / "inside") and (what == "iterdir" or path.name == "inside"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, what, refused)
    found = list_runs(folder, headline).set_index("path")
    assert found.loc["secret", ["kind", "state", "result"]].tolist() == ["folder", "unreadable", ""]
    assert sorted(found.index) == ["deep/half", "done", "secret", "study"]
    assert list_runs(folder / "secret").state.tolist() == ["unreadable"]


def test_a_study_of_files_counts_those_that_are_whole(folder):
    study = folder / "study"
    write_json(study / PLANNED, {"runs": ["models/1-s0.json", "models/1-s1.json", "models/1-s2.json"]})
    (study / "models").mkdir()
    write_json(study / "models" / "1-s0.json", {})
    (study / "models" / "1-s1.json").write_text("{")
    (study / RESULTS).touch()  # of an earlier start
    assert list_runs(study)[["state", "progress"]].values.tolist() == [["stopped", "1 of 3 runs"]]


def test_a_study_says_its_result_and_a_damaged_table_is_said(folder):
    study = folder / "study"
    (study / RESULTS).write_text("routed,seed,strength,topic\nTrue,0,0,0.1\nTrue,0,5,0.75\n")
    found = list_runs(folder, headline, study_headline).set_index("path")
    assert found.result["study"] == "probability of the topic, steered by 5: 0.750 (routed); not steered 0.100"
    (study / RESULTS).write_text("of,another,kind\n1,2,3\n")
    assert list_runs(study, headline, study_headline).result.tolist() == [""]
    (study / RESULTS).write_text("")
    assert list_runs(study, headline, study_headline).state.tolist() == ["damaged"]


def test_links_are_not_followed(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "done" / "gone").symlink_to(folder / "nowhere")
    assert len(list_runs(folder)) == 3


def test_a_folder_that_is_not_there_is_named(folder, capsys):
    with pytest.raises(RunError, match="there is no folder"):
        list_runs(folder / "absent")
    (line,) = complaints(capsys, lambda: cli.main(["runs", str(folder / "absent")]))
    assert "there is no folder" in line


def test_the_command_prints_a_line_for_each(folder, capsys):
    cli.main(["runs", str(folder)])
    printed = capsys.readouterr().out
    assert "20 of 100 steps" in printed and "1 of 2 runs" in printed
    cli.main(["runs", str(folder / "model")])
    assert "no run and no study" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"policies": {"unsteered": {"true_return": 0.1}, "steer:goal": {"true_return": 0.9}}}, "0.900 (steer:goal)"),
        ({"losses": {"finished": {"forget": 3.0, "retain": 1.5}}}, "forget loss 3.000, retain loss 1.500"),
        ({}, ""),
    ],
)
def test_the_main_result_of_each_kind_of_run_is_shown(result, said):
    assert headline(result).endswith(said)
