"""Ctrl-C in a study is one plain KeyboardInterrupt that says how to go on; in a command, one line and status 130."""

import traceback

import pytest

from routed_rl.errors import guarded
from routed_rl.experiments.oversight.oversight import PublishedStudy
from routed_rl.lm import EraStudy
from routed_rl.rl import OversightStudy
from routed_rl.runs import studies
from routed_rl.unlearning import UndoStudy


@pytest.mark.parametrize("kind", [OversightStudy, PublishedStudy, EraStudy, UndoStudy])
@pytest.mark.parametrize("where", ["_prepare", "run_all", "find"])
def test_ctrl_c_is_one_sentence_without_the_pools_lines(kind, where, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt("inside")

    monkeypatch.setattr(kind, "_prepare", lambda study, here: [])
    monkeypatch.setattr(kind, "_identity", lambda study: {"device": "cpu"})
    monkeypatch.setattr(studies if where == "run_all" else kind, where, interrupted)
    study = object.__new__(kind)
    for name, value in {"out": tmp_path / "study", "device": "cpu", "processes": 1, "KIND": None}.items():
        object.__setattr__(study, name, value)
    if where == "find":
        monkeypatch.setattr(studies, "run_all", lambda *_: {})
    with pytest.raises(KeyboardInterrupt) as error:
        study.run(workers=1)
    assert str(error.value) == f"the study in {study.out} is stopped; run it again to continue it"
    assert error.value.__suppress_context__
    assert [frame.name for frame in traceback.extract_tb(error.tb)][1:] == ["run"]
    with pytest.raises(SystemExit) as stop:
        guarded(lambda: study.run(workers=1))
    printed = capsys.readouterr().err
    assert stop.value.code == 130
    assert printed == "routed-rl: error: interrupted; start the same command again to continue\n"
