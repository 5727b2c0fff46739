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
from routed_rl.lm.hacking.figures import at_oversight
from routed_rl.lm.hacking.methods import METHODS
from tests.browser import assert_report_opens, needs_browser
from tests.experiments.described import assert_described
from tests.experiments.in_process import run_in_process
from tests.experiments.mistakes import complaints
from tests.lm import hacking_worlds
from tests.lm.hacking_worlds import Seen, Tiny, Unwatched

SMALL = {"updates": 4, "batch_size": 8, "group": 4, "rank": 2, "every": 2, "relearned": [], "seeds": 1}


@pytest.fixture
def ran(monkeypatch):
    return run_in_process(monkeypatch)


def contents(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("timings.csv", "planned.json") and path.suffix != ".log"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of every method, which is finished; and its table."""
    given = {**SMALL, "relearned": ["penalty", "routing-solo"], "relearning": 10}
    study = HackingStudy(worlds=[Tiny], methods=list(METHODS), out=tmp_path_factory.mktemp("hacking"), **given)
    plan = study.plan()
    assert set(plan.reason) == {"is new"} and len(plan) == 1 + len(METHODS) + 2
    with pytest.MonkeyPatch.context() as patch:
        ran = run_in_process(patch)
        found = study.run()
    assert len(ran) == len(plan)
    return study, found


def test_every_method_trains_and_is_measured(whole):
    study, found = whole
    assert sorted(found.method) == sorted(METHODS)
    assert found[["solved", "hack", "on_hack", "base_hack", "deployed_hack", "stopped_step"]].notna().all(axis=None)
    assert ((found[["solved", "hack"]] >= 0) & (found[["solved", "hack"]] <= 1)).all(axis=None)
    later = found.set_index("method").relearned_hack_10
    assert sorted(later.dropna().index) == ["penalty", "routing-solo"]
    assert "not described" not in study.columns().values()
    for name in study.FIGURES:
        assert isinstance(study.figure(name), Figure)
    assert "## Tiny" in study.summary() and (study.out / "report.html").exists()
    assert_described(study.out)
    for method in METHODS:
        run = study.out / "runs" / "Tiny" / method / "0.5-s0"
        assert not (run / "trainer").exists()
        load_model(run / "model")  # a plain one, whatever the method
        result = json.loads((run / "evaluation.json").read_text())
        row = found.set_index("method").loc[method]
        curve, final = result["curve"], "ablated" if METHODS[method].routed else "on"
        best = max(curve, key=lambda point: point.get(f"{final}.judged", -9))
        assert row.stopped_step == best["step"] and row.stopped_hack == best[f"{final}.hack"]
        scales, most = result["deployed"]["scales"], curve[0]["on.flagged"]
        safe = [float(scale) for scale, of in scales.items() if of["flagged"] <= most]
        assert row.deployed_scale == max(safe, default=0.0 if METHODS[method].routed else 1.0)
        assert list(result["deployed"]["scales"]) == (
            ["0.0", "0.25", "0.5", "0.75", "1.0"] if METHODS[method].routed else ["1.0"]
        )
    assert set(study.plan().reason) == {"is finished"}


@needs_browser
def test_the_report_of_a_study_opens_from_disk(whole):
    assert_report_opens(whole[0].out / "report.html", charts=2)


@pytest.mark.parametrize("moment", ["in the middle", "after the last update"])
def test_the_command_is_the_object_and_an_interrupted_run_ends_as_an_uninterrupted_one(
    ran, tmp_path, monkeypatch, moment
):
    given = {**SMALL, "methods": ["routing-predicted"], "updates": 6, "every": 1}
    whole = HackingStudy(worlds=[Tiny], out=tmp_path / "whole", **given)
    whole.run()
    measure = training.Training.measure

    def stop(run, step):
        if step == 5:
            raise SystemExit(130)
        measure(run, step)

    def stop_late(run):
        raise SystemExit(130)

    line = ["--methods", "routing-predicted", "--relearned", "penalty", "--updates", "6", "--every", "1"]
    line += ["--batch-size", "8", "--group", "4", "--rank", "2", "--seeds", "1"]
    line += ["--worlds", "tests.lm.hacking_worlds:Tiny", "--out", str(tmp_path / "broken")]
    with monkeypatch.context() as patch:
        if moment == "in the middle":
            patch.setattr(training.Training, "measure", stop)
        else:
            patch.setattr(training.Training, "_deployed", stop_late)
        with pytest.raises(SystemExit):
            cli.main(["hacking", *line])
    run = tmp_path / "broken" / "runs" / "Tiny" / "routing-predicted" / "0.5-s0"
    last = 4 if moment == "in the middle" else 6
    assert (run / "trainer" / f"checkpoint-{last}" / "measured.json").exists()
    assert not (run / "evaluation.json").exists()
    saved = (run / "trainer" / f"checkpoint-{last}" / "measured.json").read_text()
    starts = []
    monkeypatch.setattr(training.Training, "measure", lambda self, step: (starts.append(step), measure(self, step))[1])
    cli.main(["hacking", *line])
    assert starts == [*range(last + 1, 7)], "it went on from the checkpoint"
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    took = [pd.read_csv(tmp_path / name / "timings.csv").seconds.iloc[0] for name in ("whole", "broken")]
    checkpoints = [0.0, json.loads(saved)["seconds"]]
    assert all(before <= seconds for before, seconds in zip(checkpoints, took, strict=True))


@pytest.mark.usefixtures("undrawn")
def test_a_study_grows(ran, tmp_path):
    given = {"worlds": [Tiny], "out": tmp_path, **SMALL, "relearned": ["plain"], "relearning": 3}
    HackingStudy(methods=["plain"], **given).run()
    assert len(ran) == 3, "the model, its training, and its further training"
    more = HackingStudy(methods=["plain", "penalty"], **{**given, "oversight": [0.5, 1.0]})
    assert (more.plan().reason == "is new").sum() == 4, "two levels of penalty, one of plain, and further"
    found = more.run()
    assert len(ran) == 7 and len(found) == 4
    other = HackingStudy(methods=["plain"], **{**given, "updates": 5})
    with pytest.raises(UserError, match="holds another study"):
        other.plan()
    again = HackingStudy(methods=["plain"], **{**given, "relearned": []})
    assert set(again.plan().reason) == {"is finished"}
    pd.testing.assert_frame_equal(again.results(), found)


def test_worlds_share_a_model_only_if_they_are_built_in(ran, tmp_path):
    """A subclass may inherit ``base`` and change what it makes."""
    study = HackingStudy(worlds=["loophole", "evaded", Tiny, Seen], methods=["plain"], out=tmp_path, **SMALL)
    bases = study.plan().query("method == 'base'").run
    assert sorted(path.rpartition("/")[2] for path in bases) == ["Loophole-s0", "own-Seen-s0", "own-Tiny-s0"]


def test_rows_of_methods_without_an_overseer_count_once():
    rows = [("oracle", 0.1, 0), ("oracle", 0.3, 0), ("oracle", 0.3, 1), ("penalty", 0.1, 0), ("penalty", 0.3, 0)]
    frame = pd.DataFrame(rows, columns=["method", "oversight", "seed"])
    for share in (0.1, 0.3):
        found = at_oversight(frame, share)
        assert found[found.method == "oracle"].oversight.tolist() == [0.3, 0.3]
        assert found[found.method == "penalty"].oversight.tolist() == [share]


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_methods_that_are_in_no_curve_and_that_nobody_oversees(ran, tmp_path):
    study = HackingStudy(worlds=[Unwatched], methods=["screening"], out=tmp_path, **SMALL)
    found = study.run()
    assert found.stopped_step.isna().all() and "training" not in study.find().figures
    assert "| screening |" in study.summary()


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
        ({"worlds": [hacking_worlds.Promptless]}, r"prompts\(\) must return mappings with a text under 'prompt'"),
        ({"worlds": [hacking_worlds.Chatting]}, "apply_chat_template"),
        ({"worlds": [hacking_worlds.Empty]}, "got no rows"),
        (
            {"worlds": [hacking_worlds.Short]},
            r"returned 3 rows, and each update needs 16 \(batch_size divided by group",
        ),
        ({"worlds": [hacking_worlds.Endless]}, "needs a number 'most_tokens'"),
        ({"worlds": [hacking_worlds.Overseen]}, "levels must be shares above 0 and at most 1, got"),
        ({"worlds": [hacking_worlds.Vague]}, "says.. must return 'hack', 'fine' or 'unflagged', got 'perhaps'"),
        ({"at_once": 3}, "must be a multiple of"),
        ({"penalty": -1.0}, "penalty must be a finite number of at least 0"),
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
