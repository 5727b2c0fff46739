"""Suppression methods of the user's own: in a study, in single calls, and what an edit of their code changes."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from routed_rl.errors import UserError
from routed_rl.experiments import cli
from routed_rl.options.undo import UndoOptions
from routed_rl.own_modules import load
from routed_rl.runs import read_json
from routed_rl.unlearning import MaxEnt, UndoStudy, check_suppressor, tune, unlearn
from routed_rl.unlearning.undo_study import worker
from routed_rl.unlearning.undo_study.members import make_suppressor
from tests.experiments.killed_undo import OPTIONS
from tests.experiments.mistakes import complaints
from tests.experiments.small_undo import refused, run
from tests.own_code import FLAT, HELPER, own_code
from tests.unlearning.test_pipeline import FORGET, RETAIN, SMALL, model, tokenizer, weights  # noqa: F401

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "add_a_suppression_method.md"
FEW = (*OPTIONS, "--alphas", "0.5", "--filtered", "None", "--settings", "maxent.steps=2")


@pytest.fixture
def write(tmp_path):
    """Names are those of this test alone, so that no other test's module is taken for them."""
    with own_code(tmp_path) as write:
        write("my_methods.py", FLAT.format(helper="my_helper"))
        write("my_helper.py", HELPER)
        yield write


def suppressing(out):
    return {
        path.parent.name: read_json(path)["config"]["options"] for path in out.glob("stages/suppress-*/config.json")
    }


def test_a_study_with_a_method_of_ones_own_runs_again_what_an_edit_changes(small, write, tmp_path, capsys, monkeypatch):
    """The others are reused; the plan says which file was edited."""
    line = (*FEW, "Flat.retain-weight=2", "Flat.slow=true", "--suppress", "my_methods:Flat", "maxent", "--out", "study")
    line += ("--labelled", "1", "0.5")
    run(small, *line)
    frame = pd.read_csv("study/results.csv").set_index("name")
    assert {"suppressed, Flat", "suppressed, maxent", "undo, Flat, α 0.5, β 0.1"} <= set(frame.index)
    assert np.isfinite(frame.forget).all() and frame.forget.nunique() == len(frame)
    assert Path("study/labels.png").exists()
    monkeypatch.setattr(UndoStudy, "FIGURES", ())  # drawn once is enough
    before = suppressing(tmp_path / "study")
    (config,) = (of for of in before.values() if of["method"] == "my_methods:Flat" and of["labelled"] == 1)
    assert config["settings"] == {"retain_weight": 2.0, "slow": True, "margin": None}
    assert set(config["code"]) == {"my_methods.py", "my_helper.py"} and config["recipe"]["steps"] == 2
    assert str(tmp_path) not in str(before), "so that the study may move to another folder"
    capsys.readouterr()
    run(small, *line, "--plan")
    assert "0 of" in capsys.readouterr().out
    write("my_helper.py", HELPER.replace("mean", "sum"))
    reasons = study_of(small, line).plan().set_index("model").reason
    assert re.search(r'is new: code.my_helper.py is "\w+" there, "\w+" here', reasons["suppressed, Flat"].iloc[0])
    assert set(reasons["suppressed, maxent"]) == {"is finished"}
    run(small, *line)
    after = suppressing(tmp_path / "study")
    assert set(before) < set(after) and len(after) == len(before) + 2, "with all labels and with half of them"
    again = pd.read_csv("study/results.csv").set_index("name")
    assert again.forget["suppressed, Flat"] != frame.forget["suppressed, Flat"]
    assert again.forget["suppressed, maxent"] == frame.forget["suppressed, maxent"]


def study_of(small, line):
    command = cli.parse(["undo", *map(str, line), "--corpora", str(small[0])])
    return UndoStudy(**{field.name: getattr(command, field.name) for field in fields(UndoOptions)})


def test_a_class_in_python_is_the_same_study(small, write, tmp_path):
    Flat = load("my_methods:Flat")
    line = (*FEW, "--suppress", "my_methods:Flat", "maxent", "--out", tmp_path / "study")
    named = study_of(small, line)
    given = UndoStudy(**{**vars(named), "suppress": [Flat, MaxEnt]})
    keys = [[member.stage.key for member in study.members] for study in (named, given)]
    assert keys[0] == keys[1] and named.suppress == (f"{tmp_path}/my_methods:Flat", "maxent")
    assert given.members[1].name == "suppressed, Flat"


def test_a_stages_process_finds_the_method_from_any_folder(small, write, tmp_path, monkeypatch, capsys):
    study = study_of(small, (*FEW, "--suppress", "my_methods:Flat", "--out", tmp_path / "study"))
    (last, *_) = reversed(study._prepare(True))
    command = UndoStudy.KIND.command([last])
    write("my_methods.py", FLAT.format(helper="my_helper").replace("slow", "quick"))
    monkeypatch.chdir("/")
    message = complaints(capsys, lambda: worker.main(command[command.index("-m") + 2 :]))[-1]
    assert (
        "is not a stage of this study; if the code of a plug-in was edited meanwhile, start the study again" in message
    )


def test_mistakes_end_in_one_line(small, write, tmp_path, capsys):
    other = FLAT.format(helper="my_helper")
    write("other.py", other)
    write("odd.py", other.replace("margin: float | None = None", "margin: object = object()"))
    for words, message in (
        (["--suppress", "my_methods:Flta"], "has no 'Flta'; did you mean 'Flat'?"),
        (["--suppress", "my_methods:Flat", "other:Flat"], "'my_methods:Flat' and 'other:Flat' are both called 'Flat'"),
        (["--suppress", "maxent", "routed_rl.unlearning:MaxEnt"], "'maxent' and 'maxent' are both called 'maxent'"),
        (
            ["--suppress", "odd:Flat"],
            "--suppress odd:Flat: a setting of Flat.margin is a object, which JSON cannot hold",
        ),
        (
            ["--suppress", "my_methods:Flat", "--settings", "Flta.steps=1"],
            ", Flat, got 'Flta.steps=1'; did you mean",
        ),
        (
            ["--suppress", "my_methods:Flat", "--settings", "Flat.slwo=1"],
            "'slow', 'margin', 'steps', 'learning_rate'; did you mea",
        ),
        (["--suppress", "my_methods:Flat", "--settings", "Flat.slow=1"], "Flat.slow=1: '1' is not True or False"),
        (["--suppress", "my_methods:Flat", "--teachers", "Flat=x"], "with a NAME that is not taken, got 'Flat="),
    ):
        assert message in refused(capsys, small, *OPTIONS, *words, "--out", tmp_path / "s")
    with pytest.raises(UserError, match="suppress must be a name, MODULE:NAME or a class, got MaxEnt"):
        UndoStudy(suppress=[MaxEnt()])
    with pytest.raises(UserError, match=r"^suppress must be one of graddiff, .*, got 'maxnt'; did you mean 'maxent'\?"):
        UndoStudy(suppress=["maxnt"], out=tmp_path / "s").plan()


def test_single_calls_take_a_name_a_class_or_an_instance(write, model, tokenizer):  # noqa: F811
    Flat = load("my_methods:Flat")
    sets = model, tokenizer, FORGET, RETAIN
    made = [
        weights(unlearn(*sets, method, **settings, **SMALL))
        for method, settings in (
            ("my_methods:Flat", {"retain_weight": 2.0}),
            (Flat, {"retain_weight": 2.0}),
            (Flat(retain_weight=2.0), {}),
            (Flat, {}),
        )
    ]
    assert (made[0] == made[1]).all() and (made[0] == made[2]).all() and (made[0] != made[3]).any()
    with pytest.raises(
        ValueError, match="Flat has no setting 'weight'; its settings are steps, learning_rate, retain_w"
    ):
        unlearn(*sets, Flat, weight=1.0, **SMALL)
    with pytest.raises(ValueError, match=r"method 'my_methods:Flt': .* has no 'Flt'; did you mean 'Flat'\?"):
        unlearn(*sets, "my_methods:Flt", **SMALL)
    found = tune(*sets, Flat(slow=True), grid={"steps": [1]}, **SMALL)
    assert found.options == ["Flat.slow=True", "Flat.steps=1"]
    suppressor, recipe = make_suppressor(found.options, "my_methods:Flat")
    assert suppressor == Flat(slow=True) and recipe.steps == 1


def test_the_guides_method_is_a_plug_in(write):
    """The guide's own code, in the file that it names."""
    code, _ = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    write("guide_methods.py", code)
    suppressor, recipe = make_suppressor(["Flat.retain_weight=3"], "guide_methods:Flat")
    assert suppressor.retain_weight == 3 and recipe.steps == 60 and inspect.getdoc(type(suppressor))
    check_suppressor(suppressor)
