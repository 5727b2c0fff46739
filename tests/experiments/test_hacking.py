"""``routed-rl hacking`` and ``HackingStudy``: what runs, what is found, what is refused, and interruptions."""

import json

import pandas as pd
import pytest
from matplotlib.figure import Figure

pytest.importorskip("trl")

from routed_rl.errors import UserError
from routed_rl.experiments import cli
from routed_rl.lm import load_model
from routed_rl.lm.hacking import HackingStudy, training
from routed_rl.lm.hacking.methods import METHODS
from tests.experiments.in_process import run_in_process
from tests.experiments.mistakes import complaints
from tests.lm.hacking_worlds import Promptless, Tiny

SMALL = {"updates": 4, "batch_size": 8, "group": 4, "rank": 2, "every": 2, "relearning": 10, "seeds": 1}


@pytest.fixture
def ran(monkeypatch):
    return run_in_process(monkeypatch)


def contents(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("timings.csv", "planned.json") and path.suffix != ".log"
    }


def test_every_method_trains_and_is_measured(ran, tmp_path):
    study = HackingStudy(
        worlds=[Tiny], methods=list(METHODS), relearned=["penalty", "routing-solo"], out=tmp_path, **SMALL
    )
    plan = study.plan()
    assert set(plan.reason) == {"is new"} and len(plan) == 1 + len(METHODS)
    found = study.run()
    assert sorted(found.method) == sorted(METHODS) and len(ran) == 1 + len(METHODS)
    assert found[["solved", "hack", "on_hack", "base_hack", "deployed_hack", "stopped_step"]].notna().all(axis=None)
    assert ((found[["solved", "hack"]] >= 0) & (found[["solved", "hack"]] <= 1)).all(axis=None)
    later = found.set_index("method").relearned_hack_10
    assert sorted(later.dropna().index) == ["penalty", "routing-solo"]
    assert "not described" not in study.columns().values()
    for name in study.FIGURES:
        assert isinstance(study.figure(name), Figure)
    assert "## Tiny" in study.summary() and (tmp_path / "report.html").exists()
    for method in METHODS:
        run = tmp_path / "runs" / "Tiny" / method / "0.5-s0"
        assert not (run / "trainer").exists() and not (run / "relearning").exists()
        load_model(run / "model")  # a plain one, whatever the method
        assert ("relearning" in json.loads((run / "evaluation.json").read_text())) == (method in study.relearned)
    assert set(study.plan().reason) == {"is finished"}


def test_the_command_is_the_object_and_an_interrupted_run_ends_as_an_uninterrupted_one(ran, tmp_path, monkeypatch):
    given = {"methods": ["routing-predicted"], "relearned": [], **SMALL, "updates": 6, "every": 1}
    whole = HackingStudy(worlds=[Tiny], out=tmp_path / "whole", **given)
    whole.run()
    measure = training._Run.measure

    def stop(run, step):
        if step == 5:
            raise SystemExit(130)
        measure(run, step)

    line = ["--methods", "routing-predicted", "--relearned", "penalty", "--updates", "6", "--every", "1"]
    line += ["--batch-size", "8", "--group", "4", "--rank", "2", "--relearning", "10", "--seeds", "1"]
    line += ["--worlds", "tests.lm.hacking_worlds:Tiny", "--out", str(tmp_path / "broken")]
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "measure", stop)
        with pytest.raises(SystemExit):
            cli.main(["hacking", *line])
    run = tmp_path / "broken" / "runs" / "Tiny" / "routing-predicted" / "0.5-s0"
    assert (run / "trainer" / "checkpoint-4" / "measured.json").exists() and not (run / "evaluation.json").exists()
    starts = []
    monkeypatch.setattr(training._Run, "measure", lambda self, step: (starts.append(step), measure(self, step))[1])
    cli.main(["hacking", *line])
    assert starts == [5, 6], "it went on from the checkpoint"
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_study_grows(ran, tmp_path):
    given = {"worlds": [Tiny], "out": tmp_path, **SMALL}
    HackingStudy(methods=["plain"], **given).run()
    more = HackingStudy(methods=["plain", "penalty"], oversight=[0.5, 1.0], **given)
    assert (more.plan().reason == "is new").sum() == 3
    found = more.run()
    assert len(ran) == 5 and len(found) == 4
    other = HackingStudy(methods=["plain"], **{**given, "updates": 5})
    with pytest.raises(UserError, match="holds another study"):
        other.plan()
    pd.testing.assert_frame_equal(HackingStudy(methods=["plain"], **given).results(), found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"oversight": [0.0]}, "oversight must be above 0 and at most 1, got 0.0"),
        ({"methods": []}, "methods must be one or more different values"),
        ({"batch_size": 10, "group": 4}, "must be a multiple of"),
        ({"group": 1}, "group"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"worlds": ["lophole"]}, "did you mean 'loophole'"),
        ({"worlds": ["tests.lm.hacking_worlds:calculator_tokenizer"]}, "must be a subclass of"),
        ({"worlds": [Promptless]}, r"prompts\(\) must return rows with the key 'prompt'"),
        ({"methods": ["penalties"]}, "methods must be one of"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(tmp_path, given, said):
    with pytest.raises(UserError, match=said):
        HackingStudy(**{"worlds": [Tiny], "out": tmp_path / "study", **given}).plan()
    assert not (tmp_path / "study").exists()


def test_the_command_says_mistakes_in_one_line(capsys, tmp_path):
    for line, said in (
        (["--oversight", "2"], "--oversight must be above 0 and at most 1, got 2.0"),
        (["--group", "3"], "--batch-size 128 must be a multiple of --group 3"),
        (["--worlds", "nowhere:World"], "nowhere"),
    ):
        (error,) = complaints(capsys, lambda line=line: cli.main(["hacking", *line, "--out", str(tmp_path / "study")]))
        assert said in error
    assert not (tmp_path / "study").exists()


def test_a_plan_trains_nothing(capsys, tmp_path):
    cli.main(["hacking", "--quick", "--plan", "--out", str(tmp_path / "study")])
    assert "8 of 8 runs would be done" in capsys.readouterr().out and not (tmp_path / "study").exists()
