"""The same study started twice at once: the second is refused in one sentence, and the first is unharmed."""

from importlib import import_module

import pytest

from routed_rl.errors import UserError
from routed_rl.experiments import cli
from routed_rl.lm import EraStudy
from routed_rl.options.era import Attack
from routed_rl.runs import studies
from routed_rl.unlearning import UndoStudy
from tests.experiments import killed_studies, killed_undo
from tests.experiments.mistakes import complaints

RUN_ALL = "routed_rl.runs.studies.run_all"
STUDIES = {
    "quickstart": ("routed_rl.experiments.gridworld.quickstart.train_all", ["--total-steps", "64"]),
    "oversight": (RUN_ALL, ["--levels", "0.1", "--seeds", "1", "--total-steps", "64"]),
    "era": (RUN_ALL, [*killed_studies.OPTIONS, "--methods", "base", "--seeds", "1"]),
    "undo": (RUN_ALL, [*killed_undo.OPTIONS, "--alphas", "0.5"]),
    "mnist": ("routed_rl.experiments.vision.mnist._train", ["--seeds", "1"]),
    "cifar": ("routed_rl.experiments.vision.cifar._train", ["--seeds", "1"]),
    "steering-scalar": ("routed_rl.experiments.language.steering_scalar._train", ["--documents", "50"]),
}
"""For each command that runs a study: what does its runs, and options of a small one."""


@pytest.fixture
def while_it_runs(monkeypatch, tmp_path):
    """Let the runs of a study be a call of the test's own, while a log lies in the study's directory."""
    log = tmp_path / "study" / "runs" / "one.log"

    def replace(target, call):
        def runs(*_, **__):
            monkeypatch.setattr(target, lambda *_, **__: pytest.fail("the second study has begun"))
            log.parent.mkdir(exist_ok=True)
            log.write_text("of the first")
            call()
            assert log.read_text() == "of the first"
            raise KeyboardInterrupt  # the runs themselves are tested elsewhere

        monkeypatch.setattr(target, runs)

    import_module("routed_rl.experiments.language.steering_scalar")
    return replace


@pytest.mark.parametrize("command", STUDIES)
def test_the_second_of_two_commands_is_refused(command, while_it_runs, capsys, tmp_path, monkeypatch):
    killed_undo.make_small(monkeypatch)
    target, options = STUDIES[command]
    monkeypatch.chdir(tmp_path)  # where corpora are kept
    line, said = [command, *options, "--out", str(tmp_path / "study")], []
    for _ in range(2):  # what is refused leaves no lock behind, and what is interrupted neither
        while_it_runs(target, lambda: said.append(complaints(capsys, lambda: cli.main(line))[-1]))
        with pytest.raises(SystemExit) as stop:
            cli.main(line)
        assert stop.value.code == 130
    assert len(said) == 2 and all(f"{str(tmp_path / 'study')!r} is in use by another process" in text for text in said)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(EraStudy, {"documents": 1500, "test_documents": 9, "attack": Attack((2,))}), (UndoStudy, {"test_documents": 50})],
)
def test_so_is_the_second_of_two_studies_in_python(kind, options, while_it_runs, tmp_path):
    def second():
        with pytest.raises(UserError, match="is in use by another process"):
            kind(**options, corpora=tmp_path / "corpora").run(tmp_path / "study")

    while_it_runs(RUN_ALL, second)
    with pytest.raises(KeyboardInterrupt):
        kind(**options, corpora=tmp_path / "corpora").run(tmp_path / "study")


def test_a_directory_with_a_lock_alone_is_empty(tmp_path):
    (tmp_path / ".lock").touch()
    with studies.started_study(tmp_path, {"a": 1}):
        pass
    with pytest.raises(UserError, match="holds another study"), studies.started_study(tmp_path, {"a": 2}):
        pass
