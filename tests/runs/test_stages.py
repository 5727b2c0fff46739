"""Stages: a change gives the stage and all later ones new directories; edited files are rejected."""

import json
from dataclasses import replace

import pytest

from routed_rl.runs import RunError, Stage, finish_stage, plan, with_ancestors

ROOT = Stage("train", {"steps": 10}, 0, {})
NOISED = Stage("distil", {"alpha": 0.5}, 0, {"teacher": ROOT})
ATTACK = Stage("attack", {"rates": [0.1, 0.2]}, 0, {"model": NOISED})


def done(stage, root, text="weights"):
    with stage.open(root) as run:
        run.load_checkpoint()
        (run.path / "model").mkdir()
        (run.path / "model" / "weights").write_text(text)
        finish_stage(run, {"loss": 0.25}, ["model/weights"])


def test_keys_follow_everything_that_a_stage_depends_on():
    changes = [{"config": {"steps": 11}}, {"seed": 1}, {"version": 2}, {"kind": "learn"}, {"parents": {"of": ATTACK}}]
    others = [replace(ROOT, **change) for change in changes]
    assert len({stage.key for stage in (ROOT, *others)}) == 6
    after = [replace(NOISED, parents={"teacher": stage}) for stage in (ROOT, *others)]
    assert len({stage.key for stage in after}) == 6 and after[0].key == NOISED.key
    last = {replace(ATTACK, parents={"model": stage}).key for stage in after}
    assert len(last) == 6 and ATTACK.key in last
    assert replace(ROOT, config={"steps": 10}).key == ROOT.key
    assert replace(NOISED, parents={"student": ROOT}).key != NOISED.key, "the role of a parent counts"


def test_ancestors_come_first_and_once():
    other = replace(NOISED, config={"alpha": 0.6})
    joined = Stage("compare", {}, 0, {"a": ATTACK, "b": other})
    assert with_ancestors([joined, ATTACK, other]) == [ROOT, NOISED, ATTACK, other, joined]


def test_a_result_is_there_when_it_is_finished(tmp_path):
    assert ROOT.result(tmp_path) is None
    with ROOT.open(tmp_path) as run:
        run.load_checkpoint()
        assert run.path == ROOT.path(tmp_path) == tmp_path / f"train-{ROOT.key}"
    assert ROOT.result(tmp_path) is None, "it was begun"
    done(ROOT, tmp_path)
    result = ROOT.result(tmp_path)
    assert result["loss"] == 0.25 and list(result["files"]) == ["model/weights"]
    with ROOT.open(tmp_path) as run:
        assert run.finished


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model/weights", "other"),
        ("model/weights", None),
        ("evaluation.json", "{"),
        ("evaluation.json", "[]"),
        ("evaluation.json", '{"loss": 0.25}'),
        ("config.json", '{"config": {}, "seed": 0}'),
    ],
)
def test_what_was_edited_is_refused_and_left(tmp_path, file, text):
    done(ROOT, tmp_path)
    path = ROOT.path(tmp_path) / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(RunError, match=r"is not what the stage wrote: delete .*train-|was edited|does not describe"):
        ROOT.result(tmp_path)
    assert path.exists() == (text is not None)


def test_a_number_of_a_result_cannot_be_changed(tmp_path):
    done(ROOT, tmp_path)
    path = ROOT.path(tmp_path) / "evaluation.json"
    result = json.loads(path.read_text())
    result["loss"] = 0.2
    path.write_text(json.dumps(result))
    with pytest.raises(RunError, match=r"evaluation\.json' is not what the stage wrote"):
        ROOT.result(tmp_path)


def test_the_plan_says_why(tmp_path):
    stages = [ROOT, NOISED, ATTACK]
    assert list(plan(stages, tmp_path)) == [(stage, "is new") for stage in stages]
    done(ROOT, tmp_path)
    with NOISED.open(tmp_path) as run:
        run.load_checkpoint()
    assert list(plan(stages, tmp_path)) == [(ROOT, None), (NOISED, "was interrupted"), (ATTACK, "is new")]
    done(NOISED, tmp_path)
    done(ATTACK, tmp_path)
    stronger = replace(NOISED, config={"alpha": 0.6})
    again = replace(ATTACK, parents={"model": stronger})
    planned = list(plan([ROOT, stronger, again], tmp_path))
    assert [reason for _, reason in planned] == [
        None,
        "is new: alpha is 0.5 there, 0.6 here",
        "is new: its model is another stage",
    ]


def test_a_plan_compares_with_what_a_stage_takes_the_place_of_alone(tmp_path):
    """Not with other stages of the plan, with other seeds, or with stages that have little in common with it."""
    done(ROOT, tmp_path)
    done(NOISED, tmp_path)
    stronger = replace(NOISED, config={"alpha": 0.6})
    assert list(plan([ROOT, NOISED, stronger], tmp_path))[-1] == (stronger, "is new")
    for other in (replace(stronger, seed=NOISED.seed + 1), replace(NOISED, config=dict.fromkeys("abcd", 1))):
        assert list(plan([ROOT, other], tmp_path))[-1] == (other, "is new")
